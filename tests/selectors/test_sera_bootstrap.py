"""Pairs of a policy's own answers: which are made, from what, and what is told of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.scoring.responses import Responses
from tamis.selectors.sera_bootstrap import SeraBootstrap
from tamis.storage.catalog import query
from tests.tiny_models import save_model

PROMPTS = ["Name a row.", "漢字とかな?", "Why 👩‍👩‍👧?", " ", "Say more of it, and slowly."]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a policy and of a reference."""
    home = tmp_path_factory.mktemp("models")
    seeds = {"policy": 1, "reference": 2}
    return {name: str(save_model(home / name, "qwen2", seed)) for name, seed in seeds.items()}


def sampler(models: dict[str, str], **changes: Any) -> Responses:
    told = {name: {"model": folder, "dtype": "float32"} for name, folder in models.items()}
    given = {"samples": 3, "max_new_tokens": 10, **changes}
    return Responses.model_validate({**told, **given}).resolve(Path())


def chats(prompts: list[str]) -> pa.Array:
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return pa.array(turns, pa.list_(message))


@pytest.mark.parametrize("form", ["strings", "chats"])
def test_answers_depend_on_the_prompt_and_the_seed_alone(models: dict[str, str], form: str) -> None:
    prompts = pa.array(PROMPTS) if form == "strings" else chats(PROMPTS)
    stage = sampler(models)
    whole = stage.compute(pa.record_batch({"prompt": prompts})).to_pylist()
    order = [4, 0, 3, 0, 2, 1]
    other = stage.compute(pa.record_batch({"prompt": prompts.take(pa.array(order))})).to_pylist()
    for at, row in zip(order, other, strict=True):
        assert row["responses_texts"] == whole[at]["responses_texts"]
        for name in ("responses_policy_logp", "responses_reference_logp"):
            assert row[name] == pytest.approx(whole[at][name], abs=1e-4)
    assert all(len(row["responses_texts"]) == 3 for row in whole)
    drawn = {text for row in whole for text in row["responses_texts"]}
    assert len(drawn) > 10
    again = sampler(models, seed=1).compute(pa.record_batch({"prompt": prompts})).to_pylist()
    assert drawn.isdisjoint({text for row in again for text in row["responses_texts"] if text})


def test_a_batch_without_memory_is_halved(
    models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from tamis.scoring.sampling import Sampler

    batch = pa.record_batch({"prompt": PROMPTS})
    expected = sampler(models).compute(batch)["responses_texts"].to_pylist()
    honest, sizes = Sampler._batch, []

    def small(self: Sampler, prompts: list[list[int]], *args: Any) -> Any:
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("no memory")
        sizes.append(len(prompts))
        return honest(self, prompts, *args)

    monkeypatch.setattr(Sampler, "_batch", small)
    assert sampler(models).compute(batch)["responses_texts"].to_pylist() == expected
    assert sum(sizes) == 3 * len(PROMPTS)

    def none(self: Sampler, *args: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Sampler, "_batch", none)
    with pytest.raises(tamis.RunError, match="no memory for a prompt of"):
        sampler(models).compute(batch)


def test_answers_are_scored_as_any_completion_is(models: dict[str, str]) -> None:
    stage = sampler(models)
    found = stage.compute(pa.record_batch({"prompt": PROMPTS})).to_pylist()
    prompts = [p for p, row in zip(PROMPTS, found, strict=True) for _ in row["responses_texts"]]
    answers = [text for row in found for text in row["responses_texts"]]
    for name in ("policy", "reference"):
        frame = pa.table({"prompt": prompts, "completion": answers})
        told = {"model": models[name], "of": "completion", "dtype": "float32"}
        scored = tamis.score("logprobs", frame, params=told)
        expected = scored["logprobs_logp"].to_list()
        logps = [logp for row in found for logp in row[f"responses_{name}_logp"]]
        assert [logp for logp in logps if logp is not None] == pytest.approx(
            [e for e, text in zip(expected, answers, strict=True) if text.strip()], abs=1e-4
        )


def test_frequencies_are_those_of_the_model(models: dict[str, str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, TopPLogitsWarper

    from tamis.scoring.sampling import draw, uniforms

    tokenizer = AutoTokenizer.from_pretrained(models["policy"])
    model = AutoModelForCausalLM.from_pretrained(models["policy"])
    with torch.no_grad():
        logits = model(**tokenizer("Name a row.", return_tensors="pt")).logits[:, -1]
    logits = logits / logits.std()
    keys = np.random.default_rng(3).integers(0, 2**63, 20_000).astype(np.uint64)
    uniform = torch.from_numpy(uniforms(keys, 4))
    drawn = draw(logits.expand(len(keys), -1), uniform, 0.8, 0.7)
    expected = torch.softmax(TopPLogitsWarper(0.7)(None, logits / 0.8)[0].double(), -1).numpy()
    counts = np.bincount(drawn.numpy(), minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    seen = expected > 0
    chi2 = ((counts - len(keys) * expected)[seen] ** 2 / (len(keys) * expected[seen])).sum()
    freedom = seen.sum() - 1
    assert abs(chi2 - freedom) < 4 * np.sqrt(2 * freedom)


def test_a_number_next_to_one_draws_a_token_that_can_be(models: dict[str, str]) -> None:
    import torch

    from tamis.scoring.sampling import draw

    logits = torch.tensor([[0.0, 1.0, -torch.inf], [-torch.inf, 0.0, -torch.inf]])
    last = torch.tensor([1 - 2.0**-53] * 2, dtype=torch.float64)
    assert draw(logits, last, 1.0, 1.0).tolist() == [1, 1]
    assert draw(logits, torch.zeros(2, dtype=torch.float64), 1.0, 1.0).tolist() == [0, 1]


def test_prompts_that_cannot_be_answered_say_why(models: dict[str, str]) -> None:
    stage = sampler(models, max_new_tokens=20)
    prompts = pa.array(["", "a " * 500, "Name a row."])
    found = stage.compute(pa.record_batch({"prompt": prompts})).to_pylist()
    reasons = [row["responses_refused"] for row in found]
    assert reasons[0] == "a prompt without tokens"
    assert reasons[1] == "prompt and answer of 20 tokens are over 256 tokens"
    assert reasons[2] is None
    assert [row["responses_texts"] is None for row in found] == [True, True, False]
    some = stage.compute(pa.record_batch({"prompt": prompts[:2]}))
    assert some["responses_texts"].null_count == 2
    none = chats(["Name a row."] * 2).slice(0, 0)
    assert stage.compute(pa.record_batch({"prompt": none})).num_rows == 0


def test_answers_are_a_score_of_their_own(models: dict[str, str], tmp_path: Path) -> None:
    told = {name: {"model": folder, "dtype": "float32"} for name, folder in models.items()}
    told |= {"samples": 2, "max_new_tokens": 5}
    frame = tamis.score("responses", pa.table({"prompt": PROMPTS}), params=told)
    expected = sampler(models, samples=2, max_new_tokens=5)
    rows = expected.compute(pa.record_batch({"prompt": PROMPTS})).to_pylist()
    assert frame["responses_texts"].to_list() == [row["responses_texts"] for row in rows]
    stage = {"operator": "responses", "name": "said", **told}
    recipe = {"corpus": corpus(tmp_path, PROMPTS), "stages": [stage]}
    result = tamis.run({**recipe, "workspace": str(tmp_path / "work")})
    _, said = query(result.workspace, "SELECT said_texts FROM signals ORDER BY shard, row")
    assert [texts for (texts,) in said] == [row["responses_texts"] for row in rows]


def made(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    """A batch as `Responses` gives it."""
    names = ("texts", "ended", "policy", "reference", "refused")
    kinds = [pa.string(), pa.bool_(), pa.float64(), pa.float64()]
    types = [*map(pa.list_, kinds), pa.string()]
    columns = [
        pa.array([row[name] for row in rows], kind) for name, kind in zip(names, types, strict=True)
    ]
    return pa.record_batch(columns, names=list(names))


def answers(texts: str, policy: list[float | None], **more: Any) -> dict[str, Any]:
    count = len(policy)
    told = {"texts": texts.split(","), "policy": policy, "reference": [0.0] * count}
    return {**told, "ended": [True] * count, "refused": None, **more}


ROWS: list[tuple[str, dict[str, Any], tuple[str, str] | None]] = [
    ("best and worst", answers("a,b,c", [-1.0, -5.0, -3.0]), ("a", "b")),
    ("rewards, not log-probs", answers("a,b,c", [-1, -5, -3], reference=[-1, -9, -2]), ("b", "c")),
    ("the first of equal ones", answers("a,b,c", [-2.0, -2.0, -3.0]), ("a", "c")),
    ("none is scored twice", answers("a,a,b", [-2.0, -2.0, -1.0]), ("b", "a")),
    ("all alike", answers("a,a,a", [-2.0, -2.0, -2.0]), None),
    ("equal rewards", answers("a,b,c", [-2.0, -2.0, -2.0]), None),
    ("one is left", answers("a,,", [-2.0, None, None]), None),
    ("none is left", answers(",,", [None, None, None]), None),
    ("no number", answers("a,b,c", [-2.0, float("nan"), -3.0]), ("a", "c")),
    ("cut off", answers("a,b,c", [-1.0, -2.0, -3.0], ended=[True, True, False]), ("a", "b")),
    (
        "not answered",
        {**dict.fromkeys(("texts", "ended", "policy", "reference")), "refused": "x"},
        None,
    ),
]


def test_best_and_worst_of_every_prompt() -> None:
    stage = SeraBootstrap(samples=3, beta=0.5)
    batch = made([row for _, row, _ in ROWS])
    pairs = stage.pairs(batch)
    paired = [pair is not None for _, _, pair in ROWS]
    assert (pairs.outcome == 0).tolist() == paired
    assert pairs.outcome[4:8].tolist() == [3, 4, 2, 2]
    assert pairs.outcome[-1] == 1
    assert (pairs.chosen[0], pairs.rejected[0]) == (-0.5, -2.5)
    some = batch.filter(pa.array(paired))
    texts = stage.texts(some)
    expected = [pair for _, _, pair in ROWS if pair is not None]
    assert (
        list(zip(*(texts[r].to_pylist() for r in ("chosen", "rejected")), strict=True)) == expected
    )
    later = stage.texts(some.slice(1))
    assert later["chosen"].to_pylist() == texts["chosen"].to_pylist()[1:]
    assert np.isnan(pairs.chosen[~np.array(paired)]).all()
    kept = SeraBootstrap(samples=3, unfinished="keep").texts(made([ROWS[9][1]]))
    assert kept["rejected"].to_pylist() == ["c"]


def stages(models: dict[str, str], **changes: Any) -> list[dict[str, Any]]:
    scored = [
        {"operator": "logprobs", "name": name, "model": folder, "of": "pair", "dtype": "float32"}
        for name, folder in models.items()
    ]
    told = {"samples": 3, "max_new_tokens": 8, "unfinished": "keep"}
    return [*scored, {"operator": "sera_bootstrap", **told, **changes}]


def corpus(folder: Path, prompts: list[str], form: str = "strings", **more: Any) -> dict[str, Any]:
    """A corpus of pairs and its part of a recipe."""
    count = len(prompts)
    table = pa.table(
        {
            "key": [f"row-{i}" for i in range(count)],
            "prompt": prompts if form == "strings" else chats(prompts),
            "good": [f"It is {i}." for i in range(count)]
            if form == "strings"
            else chats([f"It is {i}." for i in range(count)]),
            "bad": ["No."] * count if form == "strings" else chats(["No."] * count),
            "site": ["a", None] * (count // 2) + ["b"] * (count % 2),
            "stars": list(range(count)),
        }
    )
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "in.parquet", row_group_size=4)
    roles = {"prompt": "prompt", "chosen": "good", "rejected": "bad", "id": "key", "domain": "site"}
    return {"path": str(folder / "in.parquet"), "roles": roles, **more}


@pytest.mark.parametrize("form", ["strings", "chats"])
def test_a_run_writes_the_best_pairs_beside_the_kept_rows(
    models: dict[str, str], tmp_path: Path, form: str
) -> None:
    prompts = [*(f"Name row {i}." for i in range(9)), "Name row 3."]
    result = tamis.run(
        {
            "corpus": corpus(tmp_path, prompts, form, shard_bytes=1),
            "stages": [
                *stages(models, fraction=0.5),
                {"operator": "implicit_reward_margin"},
                {"operator": "top", "by": "implicit_reward_margin", "rows": 4},
            ],
            "output": {
                "path": str(tmp_path / "out"),
                "add": {
                    "ref_chosen_logps": "reference_chosen_logp",
                    "ref_rejected_logps": "reference_rejected_logp",
                    "margin": "implicit_reward_margin",
                },
            },
        }
    )
    manifest = result.manifest
    assert manifest["rows"] == {
        "in": 10,
        "kept": 4,
        "relabelled": 0,
        "in_review": 0,
        "dropped": {"top": 6},
        "quarantined": 0,
        "generated": 5,
        "written": 9,
    }
    report = manifest["stages"][2]["report"]
    assert (report["rows"], report["prompts"], report["pairs"]) == (10, 9, 9)
    assert report["answers"]["drawn"] == 27
    counts = manifest["domains"]
    assert sum(count["generated"] for count in counts.values()) == 5
    table = pa.concat_tables(pq.read_table(tmp_path / "out" / f["name"]) for f in manifest["files"])
    assert table.schema.names[:6] == ["key", "prompt", "good", "bad", "site", "stars"]
    rows = table.to_pylist()[4:]
    source = {row["key"]: row for row in pq.read_table(tmp_path / "in.parquet").to_pylist()}
    _, told = query(
        result.workspace,
        "SELECT g.row_id, r.key, p.key, g.value, g.chosen_reward, g.rejected_reward, g.threshold "
        "FROM generated g JOIN rows r ON r.row_id = g.row_id AND r.copy = g.copy "
        "JOIN rows p ON p.row_id = g.parent AND p.copy = g.parent_copy",
    )
    assert len(told) == 5
    parents = {key: (source[parent], *rest) for _, key, parent, *rest in told}
    assert (
        len(
            {
                parent["prompt"] if form == "strings" else parent["key"]
                for parent, *_ in parents.values()
            }
        )
        == 5
    )
    for row in rows:
        parent, value, chosen, rejected, threshold = parents[row["key"]]
        assert row["key"] not in source
        assert row["prompt"] == parent["prompt"]
        assert row["site"] == parent["site"]
        assert row["stars"] is None
        assert row["good"] != row["bad"]
        if form == "chats":
            assert [m["role"] for m in row["good"] + row["bad"]] == ["assistant"] * 2
        assert value == chosen - rejected >= threshold > 0
        # The pass over new rows is another than the one over the answers: equal within rounding.
        assert row["margin"] == pytest.approx(value, abs=1e-4)
        assert row["ref_chosen_logps"] < 0 > row["ref_rejected_logps"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| generated | 5 |" in card


def test_why_follows_a_new_row_to_its_parent(models: dict[str, str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tamis.cli import app
    from tamis.flows.explain import explain

    result = tamis.run(
        {
            "corpus": corpus(tmp_path, ["Name a row."]),
            "stages": [*stages(models, rows=1), {"operator": "where", "keep": "stars > 5"}],
            "workspace": str(tmp_path / "work"),
        }
    )
    (row_id,) = [row[0] for row in query(result.workspace, "SELECT row_id FROM generated")[1]]
    chain = explain(result.workspace, row_id)
    assert [row["action"] for row in chain] == ["generate", "drop"]
    assert chain[0]["parent"] == chain[1]["row_id"]
    shown = CliRunner().invoke(app, ["why", row_id, "-w", str(result.workspace)]).output
    assert "made by sera_bootstrap" in shown
    assert f"its parent {chain[1]['row_id']}" in shown
    assert len(result.generated.collect()) == 1
    assert result.manifest["rows"]["generated"] == 1


@pytest.mark.parametrize(("of", "count"), [("kept", 2), ("all", 6)])
def test_dropped_rows_may_be_parents(
    models: dict[str, str], tmp_path: Path, of: str, count: int
) -> None:
    *scored, last = stages(models, of=of, fraction=1.0)
    result = tamis.run(
        {
            "corpus": corpus(tmp_path, [f"Name row {i}." for i in range(6)]),
            "stages": [*scored, {"operator": "where", "keep": "stars < 2"}, last],
            "workspace": str(tmp_path / "work"),
        }
    )
    assert result.manifest["rows"]["kept"] == 2
    assert result.manifest["rows"]["generated"] == count


def test_without_a_difference_between_the_models_there_is_no_pair(
    models: dict[str, str], tmp_path: Path
) -> None:
    same = dict.fromkeys(models, models["policy"])
    result = tamis.run(
        {
            "corpus": corpus(tmp_path, [f"Name row {i}." for i in range(4)]),
            "stages": stages(same),
            "output": {"path": str(tmp_path / "out")},
        }
    )
    assert result.manifest["rows"]["generated"] == 0
    assert result.manifest["rows"]["written"] == 4
    assert result.manifest["stages"][2]["report"]["no_pair"]["equal_rewards"] == 4
    assert query(result.workspace, "SELECT * FROM generated")[1] == []


def test_an_empty_corpus_makes_no_rows(models: dict[str, str], tmp_path: Path) -> None:
    part = corpus(tmp_path, ["x"])
    pq.write_table(pq.read_table(tmp_path / "in.parquet").slice(0, 0), tmp_path / "in.parquet")
    recipe = {"corpus": part, "stages": stages(models), "output": {"path": str(tmp_path / "out")}}
    assert tamis.run(recipe).manifest["rows"]["written"] == 0


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [(pa.int64(), True), (pa.uint64(), True), (pa.large_string(), True), (pa.int32(), False)],
)
def test_ids_of_new_rows_have_the_column_s_type(
    models: dict[str, str], tmp_path: Path, kind: pa.DataType, accepted: bool
) -> None:
    part = corpus(tmp_path, [f"Name row {i}." for i in range(3)])
    table = pq.read_table(tmp_path / "in.parquet")
    keys = pa.array([1, 2, 3]).cast(kind)
    pq.write_table(table.set_column(0, "key", keys), tmp_path / "in.parquet")
    recipe = {
        "corpus": part,
        "stages": stages(models, fraction=1.0),
        "output": {"path": str(tmp_path / "out")},
    }
    if not accepted:
        with pytest.raises(tamis.UserError, match="'key' of type int32 cannot hold ids"):
            tamis.run(recipe)
        return
    manifest = tamis.run(recipe).manifest
    found = pa.concat_tables(pq.read_table(tmp_path / "out" / f["name"]) for f in manifest["files"])
    assert found["key"].type == kind
    assert len(set(found["key"].to_pylist())) == 6


def test_without_an_id_a_row_is_told_apart_by_what_identifies_rows(
    models: dict[str, str], tmp_path: Path
) -> None:
    part = corpus(tmp_path, [f"Name row {i}." for i in range(3)])
    del part["roles"]["id"]
    recipe = {"corpus": part, "stages": stages(models, fraction=1.0)}
    rows = tamis.run({**recipe, "workspace": str(tmp_path / "all")}).decisions.collect()
    assert len(rows) == 6
    assert len(set(rows.select("id_hi", "id_lo").rows())) == 6
    # Where the prompt alone tells rows apart, a new row is a further copy of its parent's.
    recipe["corpus"] |= {"identity": ["prompt"]}
    rows = tamis.run({**recipe, "workspace": str(tmp_path / "prompt")}).decisions.collect()
    assert sorted(rows["copy"].to_list()) == [0, 0, 0, 1, 1, 1]
    made = rows.filter(rows["action"] == "generate")
    assert made["id_hi"].to_list() == made["parent_hi"].to_list()
    assert made["parent_copy"].to_list() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"policy": "pollicy"}, "no earlier stage `logprobs` is named 'pollicy'"),
        ({"samples": 1}, "samples"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(
    models: dict[str, str], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    recipe = {"corpus": corpus(tmp_path, ["a"]), "stages": stages(models, **change)}
    with pytest.raises(tamis.UserError, match=says):
        tamis.run({**recipe, "workspace": str(tmp_path / "work")})


def test_scores_of_the_whole_table_are_not_for_new_rows(
    models: dict[str, str], tmp_path: Path
) -> None:
    table_stage = {"operator": "repeats"}
    recipe = {
        "corpus": corpus(tmp_path, ["a"]),
        "stages": [table_stage, *stages(models)],
        "output": {"path": str(tmp_path / "out"), "add": ["repeats"]},
    }
    recipe["corpus"]["roles"]["text"] = "prompt"
    with pytest.raises(tamis.UserError, match="scores the rows of the corpus together"):
        tamis.run(recipe)
