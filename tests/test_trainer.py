"""TRL trains on a dataset as it was written, with the code that the documentation gives."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tests.tiny_models import save_model

PAGE = Path(__file__).resolve().parents[1] / "docs" / "trainer.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
LENGTH = 256


def _pairs(form: str) -> pa.Table:
    columns = {
        "prompt": [f"Say what {i} is." for i in range(12)],
        "chosen": [f"It is {i}." for i in range(12)],
        "rejected": [f"No {i}" for i in range(12)],
    }
    if form == "strings":
        return pa.table(columns)
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return pa.table(
        {
            name: [[{"role": roles[name], "content": t}] for t in texts]
            for name, texts in columns.items()
        }
    )


@pytest.fixture(scope="module", params=["strings", "chats"])
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy, its reference, and a dataset ``train`` that a run wrote."""
    home = tmp_path_factory.mktemp(request.param)
    for name, seed in (("policy", 1), ("reference", 2)):
        save_model(home / name, "qwen2", seed)
    pq.write_table(_pairs(request.param), home / "pairs.parquet")
    stages: list[dict[str, Any]] = [
        {"operator": "logprobs", "name": name, "model": str(home / name), "of": "pair"}
        for name in ("policy", "reference")
    ]
    for stage in stages:
        stage |= {"dtype": "float32", "max_tokens": LENGTH}
    made = {"samples": 2, "max_new_tokens": 8, "unfinished": "keep", "rows": 4}
    result = tamis.run(
        {
            "corpus": {
                "path": str(home / "pairs.parquet"),
                "roles": {name: name for name in ("prompt", "chosen", "rejected")},
            },
            "stages": [
                *stages,
                {"operator": "implicit_reward_margin"},
                {"operator": "sera_bootstrap", **made},
                {"operator": "sera", "fraction": 0.5},
            ],
            "output": {
                "path": str(home / "train"),
                "add": {
                    "ref_chosen_logps": "reference_chosen_logp",
                    "ref_rejected_logps": "reference_rejected_logp",
                    "weight": "policy_chosen_tokens",
                },
            },
        }
    )
    assert result.manifest["rows"]["written"] == 6 + 4
    return home


@pytest.fixture
def given(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the documentation's code defines, but for the training itself."""
    monkeypatch.chdir(home)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {}
    for block in CODE:
        if "trainer.train()" not in block:
            exec(block, names)
    return names


def _arguments(home: Path, **more: Any) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    told = {"max_length": LENGTH, "max_steps": 1, "per_device_train_batch_size": 10, "seed": 5}
    told |= {"output_dir": str(home / "run"), "report_to": [], "use_cpu": True, "bf16": False}
    told |= {"save_strategy": "no", "logging_steps": 1, "beta": 0.1, "learning_rate": 0.01}
    return {
        "model": AutoModelForCausalLM.from_pretrained(home / "policy"),
        "args": DPOConfig(**told, **more),
        "processing_class": AutoTokenizer.from_pretrained(home / "policy"),
    }


def _rows(home: Path) -> pa.Table:
    return pa.concat_tables(
        pq.read_table(path) for path in sorted((home / "train").glob("*.parquet"))
    )


@pytest.mark.slow
def test_a_dataset_is_trained_on_as_it_is(home: Path, given: dict[str, Any]) -> None:
    from datasets import load_dataset
    from trl import DPOTrainer

    card = load_dataset("train", split="train")
    assert card.to_list() == given["dataset"].to_list()
    arguments = _arguments(home)
    trainer = DPOTrainer(train_dataset=given["dataset"], **arguments)
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # of two equals
    assert any(not p.equal(q) for p, q in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.slow
def test_the_reference_s_log_probs_are_those_of_the_dataset(
    home: Path, given: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM
    from trl import DPOTrainer

    trainer = given["Precomputed"](
        train_dataset=given["dataset"], **_arguments(home, precompute_ref_log_probs=True)
    )
    assert trainer.ref_model is None
    trainer.train()
    logged = trainer.state.log_history[0]
    # The policy's own log-probabilities are as TRL has them; the reference's are ours.
    rows = _rows(home)
    for side in ("chosen", "rejected"):
        reference = sum(rows[f"ref_{side}_logps"].to_pylist()) / rows.num_rows
        reward = 0.1 * (logged[f"logps/{side}"] - reference)
        assert logged[f"rewards/{side}"] == pytest.approx(reward, abs=2e-3)
        assert abs(logged[f"rewards/{side}"]) > 0.1
    # Those that TRL itself computes of the reference are equal.

    arguments = _arguments(home, precompute_ref_log_probs=True)
    plain = given["dataset"].remove_columns(["ref_chosen_logps", "ref_rejected_logps"])
    reference = AutoModelForCausalLM.from_pretrained(home / "reference")
    theirs = DPOTrainer(train_dataset=plain, ref_model=reference, **arguments).train_dataset
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert theirs[name] == pytest.approx(rows[name].to_pylist(), abs=1e-3)
    with pytest.raises(ValueError, match="duplicated columns"):
        DPOTrainer(
            train_dataset=given["dataset"], **_arguments(home, precompute_ref_log_probs=True)
        )


@pytest.mark.slow
def test_rows_are_drawn_by_their_weights(home: Path, given: dict[str, Any]) -> None:
    dataset = given["dataset"]
    weights = [0.0 if i % 2 else 1.0 + i for i in range(len(dataset))]
    dataset = dataset.remove_columns("weight").add_column("weight", weights)
    trainer = given["Weighted"](train_dataset=dataset, **_arguments(home))
    sampler = trainer._get_train_sampler()
    counts = Counter(row for _ in range(1000) for row in sampler)
    assert set(counts) == {0, 2, 4, 6, 8}
    assert counts[8] / counts[2] == pytest.approx(9 / 3, rel=0.15)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["input_ids"]) == 2 * len(dataset)
