"""Scores of the signals that models leave, against transformers and plain arithmetic."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tests.conftest import make_texts
from tests.scoring.signal_tools import least
from tests.tiny_models import save_model

PAIRS = [
    {"id": f"r{i}", "prompt": f"{a[:40]}\n", "chosen": b[:60], "rejected": c[:90]}
    for i, (a, b, c) in enumerate(
        zip(*(make_texts(8, seed=s, words=12) for s in (1, 2, 3)), strict=True)
    )
]
SIDES = ("chosen", "rejected")
MIN_K = [0.5, 0.1]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        name: save_model(folder / name, "gpt2", seed)
        for seed, name in enumerate(("policy", "reference"))
    }


def stages(models: dict[str, Path]) -> list[dict[str, Any]]:
    common = {"operator": "logprobs", "of": "pair", "dtype": "float32", "min_k": MIN_K}
    return [
        {**common, "name": "policy", "model": str(models["policy"]), "hidden": "sum"},
        {**common, "name": "reference", "model": str(models["reference"])},
        {"operator": "implicit_reward_margin", "name": "margin"},
        {"operator": "ches"},
        {"operator": "ranking_accuracy"},
        {"operator": "preference_difficulty"},
        {"operator": "perplexity", "signal": "policy_rejected"},
        {"operator": "mean_entropy", "signal": "policy_chosen"},
        {"operator": "top1_accuracy", "signal": "policy_chosen"},
        {"operator": "min_k_prob", "signal": "policy_chosen", "k": 0.1, "levels": MIN_K},
        {"operator": "chow_quantile", "signal": "policy_chosen", "quantile": 0.5},
        {"operator": "excess_loss", "signal": "policy_chosen", "reference": "reference_chosen"},
        {"operator": "sera", "by": "margin", "fraction": 0.5},
    ]


def recipe(corpus: Path, home: Path, stages: list[dict[str, Any]]) -> dict[str, Any]:
    roles = {role: role for role in ("id", "prompt", *SIDES)}
    part = {"path": str(corpus), "roles": roles}
    return {"corpus": part, "stages": stages, "workspace": str(home), "workers": 1}


def by_transformers(folder: Path) -> list[dict[str, Any]]:
    """Of every row and side: log-probs, entropies and hits of the completion's tokens, and hidden
    states from the last token of the prompt to the one before the last."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for row in PAIRS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = [
            tokenizer(row["prompt"] + row[side] + tokenizer.eos_token)["input_ids"]
            for side in SIDES
        ]
        begin = min(
            next(i for i in range(len(ids)) if ids[: i + 1] != prompt[: i + 1]) for ids in whole
        )
        entry = {}
        for side, ids in zip(SIDES, whole, strict=True):
            with torch.no_grad():
                out = model(torch.tensor([ids]), output_hidden_states=True)
            log_probs = torch.log_softmax(out.logits[0].double(), -1)[begin - 1 : -1]
            targets = torch.tensor(ids[begin:])
            entry[side] = {
                "logps": log_probs.gather(1, targets[:, None])[:, 0].tolist(),
                "entropy": (-(log_probs.exp() * log_probs).sum(1)).tolist(),
                "top1": (log_probs.argmax(1) == targets).tolist(),
                "hidden": out.hidden_states[-1][0, begin - 1 : -1].double().numpy(),
            }
        found.append(entry)
    return found


def test_scores_of_a_run_with_two_models(models: dict[str, Path], tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "in.parquet")
    result = tamis.run(recipe(tmp_path / "in.parquet", tmp_path / "w", stages(models)))
    scores = tamis.sql(result, "SELECT r.id, s.* FROM scores s JOIN rows r USING (shard, row)")
    by_id = {row["id"]: row for row in scores.to_dicts()}
    policy, reference = (by_transformers(models[name]) for name in ("policy", "reference"))
    margins = []
    for row, mine, theirs in zip(PAIRS, policy, reference, strict=True):
        got = by_id[row["id"]]
        logp = {
            (name, side): math.fsum(entry[side]["logps"])
            for name, entry in (("policy", mine), ("reference", theirs))
            for side in SIDES
        }
        reward = {side: 0.1 * (logp["policy", side] - logp["reference", side]) for side in SIDES}
        chosen, rejected = mine["chosen"]["logps"], mine["rejected"]["logps"]
        plus, minus = (mine[side]["hidden"].sum(0) for side in SIDES)
        worst = least(chosen, 0.1)
        expected = {
            "margin": reward["chosen"] - reward["rejected"],
            "margin_chosen": reward["chosen"],
            "margin_rejected": reward["rejected"],
            "ches": plus @ minus - plus @ plus,
            "ches_per_token": plus @ minus / len(chosen) / len(rejected)
            - plus @ plus / len(chosen) ** 2,
            "ranking_accuracy": float(logp["policy", "chosen"] >= logp["policy", "rejected"]),
            "preference_difficulty": logp["reference", "rejected"] - logp["reference", "chosen"],
            "perplexity": math.exp(-math.fsum(rejected) / len(rejected)),
            "mean_entropy": np.mean(mine["chosen"]["entropy"]),
            "top1_accuracy": np.mean(mine["chosen"]["top1"]),
            "min_k_prob": math.fsum(worst) / len(worst),
            "chow_quantile": np.quantile(-np.array(chosen), 0.5),
            "excess_loss": (logp["reference", "chosen"] - logp["policy", "chosen"]) / len(chosen),
        }
        for name, value in expected.items():
            assert got[name] == pytest.approx(value, rel=2e-4, abs=2e-4), name
        margins.append(got["margin"])
    kept = result.kept.collect()["id_hi"].to_list()
    best = pl.DataFrame({"margin": margins, "id": [row["id"] for row in PAIRS]}).top_k(
        4, by="margin"
    )
    whose = tamis.sql(
        result, "SELECT id FROM rows JOIN decisions USING (shard, row) WHERE action = 'keep'"
    )
    assert set(whose["id"]) == set(best["id"])
    assert len(kept) == 4
    over = tamis.score("reference_margin", result)
    assert over["reference_margin"].to_list() == [
        -d for d in scores.sort("shard", "row")["preference_difficulty"].to_list()
    ]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"operator": "min_k_prob"}, r"`levels` is \[0.2\], `min_k` of .* is \[0.5, 0.1\]"),
        ({"operator": "ches"}, "reads 'policy_chosen_hidden_sum', which is neither"),
    ],
)
def test_what_does_not_fit_the_signal_is_told_before_any_work(
    stage: dict[str, Any], message: str, models: dict[str, Path], tmp_path: Path
) -> None:
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "in.parquet")
    signal = {key: v for key, v in stages(models)[0].items() if key != "hidden"}
    stage = {**stage, "signal": "policy_chosen" if stage["operator"] == "min_k_prob" else "policy"}
    with pytest.raises(tamis.UserError, match=message):
        tamis.run(recipe(tmp_path / "in.parquet", tmp_path / "w", [signal, stage]))
    assert not (tmp_path / "w" / "signals").exists()
