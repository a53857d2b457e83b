"""Log-probabilities of texts, completions and pairs: TRL's tokens and sums, and every bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.scoring.completions import OverLong, SequenceTokenizer, load_sequence_tokenizer
from tamis.scoring.language_files import find_language_model
from tamis.scoring.language_model import LanguageModel
from tamis.scoring.logprobs import Logprobs
from tamis.scoring.token_stats import token_stats
from tamis.storage.errors import UserError
from tests.conftest import make_texts
from tests.tiny_models import save_model, save_tokenizer

torch = pytest.importorskip("torch", reason="the extra `models` is not installed")
AutoTokenizer = pytest.importorskip(
    "transformers", reason="the extra `models` is not installed"
).AutoTokenizer

Pairs = list[dict[str, Any]]
KINDS = ("llama", "qwen2", "gpt2")
#: Boundaries of every sort: blanks on either side, nothing on one of them, special tokens spelt
#: out, an end of text that is there already, characters of several bytes and tokens.
PROMPTS = [
    *("\n\nHuman: Who are you?\n\nAssistant:", "Hello", "Hello ", "", "漢字", "a  b\n"),
    *("Question: x <|endoftext|> y", " lead", "x" * 40, "the same", "the same"),
]
CHOSEN = [
    *(" I am a model.", " world", "world", "abc", "とかな", " tail", "<|im_end|> yes</s>"),
    *("", "</s>", " answer", " answer"),
]
REJECTED = [
    *(
        " Who",
        "world!",
        " world",
        "z",
        "",
        "",
        "👩‍👩‍👧 no",
        "<|endoftext|>",
        " a b c",
        " answer",
        "",
    ),
]


def pairs(chat: bool) -> Pairs:
    rows = zip(PROMPTS, CHOSEN, REJECTED, strict=True)
    if not chat:
        return [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows]
    return [
        {
            "prompt": [{"role": "user", "content": p}],
            "chosen": [{"role": "assistant", "content": c}],
            "rejected": [{"role": "assistant", "content": r}],
        }
        for p, c, r in rows
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def scored(folder: Path, rows: list[dict[str, Any]], **params: Any) -> list[dict[str, Any]]:
    """What the stage `s` says of some rows."""
    stage = Logprobs(**{"name": "s", "model": str(folder), "dtype": "float32", **params})
    found = stage.compute(pa.RecordBatch.from_pylist(rows))
    assert found.schema == stage.fields()
    listed: list[dict[str, Any]] = found.to_pylist()
    return listed


def of_text(folder: Path, texts: list[str], **params: Any) -> list[dict[str, Any]]:
    return scored(folder, [{"text": text} for text in texts], **params)


def tokenizer_of(
    folder: Path, most: int = 256, over_long: OverLong = "keep_start"
) -> SequenceTokenizer:
    return SequenceTokenizer(find_language_model(str(folder)), most, over_long)


@lru_cache
def in_float64(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def by_transformers(folder: Path, ids: list[int], first: int) -> Any:
    """Log-probabilities of the tokens from `first` on, in float64."""
    import torch

    with torch.no_grad():
        logps = in_float64(folder)(torch.tensor([ids])).logits[0].log_softmax(-1)
    return logps[first - 1 : -1].gather(1, torch.tensor(ids[first:])[:, None])[:, 0].numpy()


def trl(folder: Path, rows: Pairs, **config: Any) -> Any:
    """The data set of a DPOTrainer: tokens and reference log-probabilities."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(folder / "trl"),
            bf16=False,
            use_cpu=True,
            report_to=[],
            precompute_ref_log_probs=True,
            **config,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    return trainer.train_dataset


@pytest.mark.parametrize("chat", [False, True], ids=["strings", "chats"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_sums_are_those_of_trl(
    models: dict[str, Path], kind: str, chat: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="TRL, which says what is right, is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    rows, folder = pairs(chat), models[kind]
    theirs = trl(folder, rows)
    batch = pa.RecordBatch.from_pylist(rows)
    tokens = tokenizer_of(folder).completions(batch["prompt"], [batch["chosen"], batch["rejected"]])
    ours = scored(folder, rows, of="pair")
    assert len(theirs) == len(ours)
    for side, found in zip(("chosen", "rejected"), tokens, strict=True):
        for row, want in enumerate(theirs):
            ids = want["prompt_ids"] + want[f"{side}_ids"]
            here = slice(*found.tokens.offsets[row : row + 2])
            if len(ids) == 1:  # TRL gives the sum 0 to what has no token with one before it
                assert found.refused[row].as_py() == "no token to score"
                continue
            assert found.tokens.ids[here].tolist() == ids
            # Without a prompt and a BOS the first token of the completion has nothing before it.
            assert found.context[row] == max(1, len(want["prompt_ids"]))
            if ours[row]["s_refused"] is None:
                assert ours[row][f"s_{side}_tokens"] == len(ids) - found.context[row]
                assert ours[row][f"s_{side}_logp"] == pytest.approx(
                    want[f"ref_{side}_logps"], abs=1e-4
                )
    assert [row["s_refused"] for row in ours if row["s_refused"]] == []


@pytest.mark.parametrize("side", ["keep_start", "keep_end"])
def test_over_long_pairs_are_cut_as_trl_cuts_them(
    models: dict[str, Path], side: OverLong, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="TRL, which says what is right, is not installed")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    texts = make_texts(36, copies=0)
    rows = [
        {"prompt": p[:60], "chosen": c[:90], "rejected": r[:200]}
        for p, c, r in zip(texts[::3], texts[1::3], texts[2::3], strict=True)
    ]
    config = {"max_length": 48, "truncation_mode": side}
    theirs = trl(models["llama"], rows, **config)
    ours = scored(models["llama"], rows, of="pair", max_tokens=48, over_long=side)
    kept = [row for row in ours if row["s_refused"] is None]
    assert len(kept) == len(theirs)
    assert any(row["s_rejected_truncated"] for row in kept)
    for row, want in zip(kept, theirs, strict=True):
        for name in ("chosen", "rejected"):
            assert row[f"s_{name}_logp"] == pytest.approx(want[f"ref_{name}_logps"], abs=1e-4)


def test_columns_of_a_text(models: dict[str, Path]) -> None:
    import torch
    from transformers import AutoTokenizer

    folder, text = models["llama"], "Some words,  漢字 and more words."
    asked: dict[str, Any] = {"min_k": [0.0, 0.2, 1.0], "quantiles": [0.0, 0.25, 0.5, 1.0]}
    (row,) = of_text(folder, [text], token_logps=True, hidden="sum", **asked)
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    logps = by_transformers(folder, ids, 1)
    assert row["s_logp"] == pytest.approx(logps.sum(), abs=1e-4)
    assert row["s_tokens"] == len(logps) == len(ids) - 1
    assert row["s_bytes"] == len(text.encode())
    np.testing.assert_allclose(row["s_token_logps"], logps, atol=1e-5)
    counts = [max(1, int(len(logps) * k)) for k in asked["min_k"]]
    lowest = [np.sort(logps)[:count].sum() for count in counts]
    np.testing.assert_allclose(row["s_min_k"], lowest, atol=1e-4)
    np.testing.assert_allclose(
        row["s_quantiles"], np.quantile(-logps, asked["quantiles"]), atol=1e-5
    )
    with torch.no_grad():
        said = in_float64(folder)(torch.tensor([ids]), output_hidden_states=True)
    every = said.logits[0, :-1].log_softmax(-1)
    assert row["s_top1"] == int((every.argmax(-1) == torch.tensor(ids[1:])).sum())
    assert row["s_entropy"] == pytest.approx(float(-(every.exp() * every).sum()), abs=1e-3)
    states = said.hidden_states[-1][0, :-1]
    np.testing.assert_allclose(row["s_hidden_sum"], states.sum(0), atol=1e-4)
    assert row["s_hidden_tokens"] == len(states)
    (row,) = of_text(folder, [text], hidden="mean")
    np.testing.assert_allclose(row["s_hidden_mean"], states.mean(0), atol=1e-5)


def test_a_text_has_what_the_tokenizer_puts_around_it(models: dict[str, Path]) -> None:
    text = "Some words"
    for kind, special in (("llama", True), ("qwen2", False)):
        found = tokenizer_of(models[kind]).texts(pa.array([text]))
        hugging = load_sequence_tokenizer(find_language_model(str(models[kind])), 9, "keep_end")
        ids = hugging._hugging(text)["input_ids"]
        assert found.tokens.ids.tolist() == ids
        assert (ids[0] == hugging._hugging.bos_token_id) == special


@pytest.mark.parametrize("chat", [False, True], ids=["strings", "chats"])
def test_without_its_prompt_a_completion_has_the_same_tokens(
    models: dict[str, Path], chat: bool
) -> None:
    """After a BOS where the tokenizer or the template has one, else from the second token on."""
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(chat)]
    for kind in ("llama", "qwen2"):
        whole, alone = (
            scored(models[kind], rows, of="completion", conditioned=c, token_logps=True)
            for c in (True, False)
        )
        batch = pa.RecordBatch.from_pylist(rows)
        tokens = tokenizer_of(models[kind])
        (read,) = tokens.completions(batch["prompt"], [batch["completion"]])
        (bare,) = tokens.completions(batch["prompt"], [batch["completion"]], conditioned=False)
        for row, (a, b) in enumerate(zip(whole, alone, strict=True)):
            ids = read.tokens.ids[slice(*read.tokens.offsets[row : row + 2])]
            own = bare.tokens.ids[slice(*bare.tokens.offsets[row : row + 2])]
            if kind == "llama":
                assert own.tolist() == [1, *ids[read.context[row] :]]
                assert a["s_tokens"] == b["s_tokens"]
            elif b["s_refused"] is None and a["s_tokens"] > b["s_tokens"]:
                assert own.tolist() == ids[read.context[row] :].tolist()
            if b["s_refused"] is None:
                want = by_transformers(models[kind], own.tolist(), 1)
                np.testing.assert_allclose(b["s_token_logps"], want, atol=1e-4)


def test_an_empty_completion_has_its_end_to_score_and_nothing_is_zero(
    models: dict[str, Path],
) -> None:
    rows = [{"prompt": "Hello", "completion": ""}, {"prompt": "", "completion": ""}]
    full, empty = scored(models["qwen2"], rows, of="completion")
    assert (full["s_tokens"], full["s_bytes"], full["s_refused"]) == (1, 0, None)
    assert full["s_logp"] < 0
    assert empty == {**dict.fromkeys(empty), "s_refused": "no token to score"}
    # The tokenizer of a text adds no end to it.
    assert [row["s_refused"] for row in of_text(models["llama"], ["", "a"])] == [
        "no token to score",
        None,
    ]
    for kind in KINDS:
        assert all(row["s_refused"] for row in of_text(models[kind], [""]))


def test_over_long_rows_are_cut_and_marked_or_refused(models: dict[str, Path]) -> None:
    folder = models["qwen2"]
    text = " ".join(make_texts(3, copies=0))
    short = {"prompt": "Hello", "completion": " you"}
    rows = [{"prompt": text, "completion": " end"}, {"prompt": "a", "completion": text}, short]
    start = scored(folder, rows, of="completion", max_tokens=32)
    assert re.fullmatch(
        r"no token to score: the prompt alone has \d{3} tokens of at most 32", start[0]["s_refused"]
    )
    assert [row["s_truncated"] for row in start] == [None, True, False]
    end = scored(folder, rows, of="completion", max_tokens=32, over_long="keep_end")
    assert [row["s_truncated"] for row in end] == [True, True, False]
    assert (end[0]["s_bytes"], end[1]["s_tokens"]) == (4, 31)
    assert 0 < start[1]["s_bytes"] < len(text.encode())
    refused = scored(folder, rows, of="completion", max_tokens=32, over_long="quarantine")
    assert [row["s_logp"] is None for row in refused] == [True, True, False]
    assert refused[1]["s_refused"].endswith("tokens, over 32")
    for found in (start, end, refused):
        assert found[2]["s_logp"] == pytest.approx(start[2]["s_logp"], abs=1e-4)


def test_results_do_not_depend_on_the_batch(models: dict[str, Path]) -> None:
    rows = pairs(False)
    whole = scored(models["gpt2"], rows, of="pair")
    for row, expected in zip(rows, whole, strict=True):
        (found,) = scored(models["gpt2"], [row], of="pair")
        assert found["s_refused"] == expected["s_refused"]
        for name in ("s_chosen_logp", "s_rejected_entropy"):
            assert found[name] == (expected[name] and pytest.approx(expected[name], abs=1e-4))


def test_no_rows(models: dict[str, Path]) -> None:
    stage = Logprobs(name="s", model=str(models["llama"]), token_logps=True, hidden="mean")
    found = stage.compute(pa.record_batch({"text": pa.array([], pa.string())}))
    assert (found.num_rows, found.schema) == (0, stage.fields())


# What is refused, and told in one line.


def refuses(match: str, folder: Any, rows: Pairs | None = None, **params: Any) -> None:
    def use() -> None:
        if rows is None:
            Logprobs(model=str(folder), **params).resolve(Path())
        else:
            scored(folder, rows, **params)

    with pytest.raises(UserError, match=match) as caught:
        use()
    assert "\n" not in str(caught.value)


@pytest.fixture
def copied(models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(models["qwen2"], tmp_path / "model"))


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("config.json", r"lacks config\.json"),
        ("model.safetensors", r"lacks its weights \(model\.safetensors\)"),
        ("tokenizer.json", r"lacks its tokenizer \(tokenizer\.json\)"),
    ],
)
def test_a_folder_that_lacks_a_file(copied: Path, file: str, match: str) -> None:
    (copied / file).unlink()
    refuses(match, copied)


def test_weights_that_are_pickled_are_not_read(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    refuses(r"are pickled \(pytorch_model\.bin\).*writes safetensors", copied)


def test_parts_of_weights(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    refuses(r"lacks a part of its weights \(model-00001-of-00002", copied)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    (copied.parent / "elsewhere.safetensors").touch()
    refuses(r"a part of its weights that lies elsewhere", copied)
    index.write_text("{")
    refuses("cannot be read as JSON", copied)


def test_weights_that_are_cut_off_or_too_few(copied: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = copied / "model.safetensors"
    whole = load_file(weights)
    first = next(name for name in whole if "mlp" in name)
    save_file({k: v for k, v in whole.items() if k != first}, weights, {"format": "pt"})
    refuses(r"lack 1 of its parameters \(model\.layers", copied, pairs(False), of="pair")
    weights.write_bytes(weights.read_bytes()[:5000])
    refuses("cannot be loaded", copied, pairs(False), of="pair")


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    refuses("it is an adapter, which must be merged", tmp_path)


def test_code_that_a_model_brings_is_not_run(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "mine.py").write_text("raise SystemExit('run')")
    refuses("cannot be loaded", copied, pairs(False), of="pair")


def test_names_that_lead_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refuses("no such model folder", tmp_path / "nothing")
    refuses("is not on this machine, and the hub cannot be reached", "nobody/nothing")


def test_other_files_than_those_pinned(copied: Path) -> None:
    pinned = Logprobs(model=str(copied)).resolve(Path()).digest
    refuses("expected 0123", copied, digest="0123")
    (copied / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert Logprobs(model=str(copied)).resolve(Path()).digest != pinned


def test_a_context_that_is_too_long_or_unknown(copied: Path) -> None:
    refuses("reads 256 tokens, found 257", copied, max_tokens=257)
    config = json.loads((copied / "config.json").read_text())
    del config["max_position_embeddings"]
    (copied / "config.json").write_text(json.dumps(config))
    refuses("does not tell how many tokens it reads.*set `max_tokens`", copied)
    assert Logprobs(model=str(copied), max_tokens=64).resolve(Path()).max_tokens == 64


def test_a_model_without_chat_template(copied: Path) -> None:
    save_tokenizer(copied, "qwen2").chat_template = None
    for path in (copied / "chat_template.jinja", copied / "tokenizer_config.json"):
        if path.exists():
            path.unlink()
    save_tokenizer(copied, "qwen2")
    (copied / "chat_template.jinja").unlink()
    refuses("has no chat template, and the corpus holds lists", copied, pairs(True), of="pair")


def test_conversations_that_the_template_refuses(models: dict[str, Path]) -> None:
    (good,) = pairs(True)[:1]
    twice = {**good, "prompt": good["prompt"] * 2}
    none = {**good, "prompt": []}
    found = scored(models["llama"], [twice, good, none], of="pair")
    assert found[0]["s_refused"].endswith("the chat template refuses it: roles must alternate")
    assert found[1] == scored(models["llama"], [good], of="pair")[0]
    assert found[2]["s_refused"].endswith("a list without messages")


def test_strings_beside_messages(models: dict[str, Path]) -> None:
    mixed = [{**pairs(True)[0], "prompt": "Hello"}]
    refuses("must all be strings, or all lists of messages", models["llama"], mixed, of="pair")


def test_a_tokenizer_without_padding_is_enough(models: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(models["llama"]).pad_token is None
    assert of_text(models["llama"], ["one", "one two three"])[0]["s_logp"] < 0


def test_logits_that_are_not_finite(copied: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    ids = load_sequence_tokenizer(find_language_model(str(copied)), 9, "keep_start")._hugging
    broken = ids("q")["input_ids"][-1]
    assert "lm_head.weight" in weights  # else every logit would be broken
    weights["model.embed_tokens.weight"][broken] = np.nan
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    rows = [{"prompt": "a long enough prompt", "completion": c} for c in (" abc", "q q", " xyz")]
    found = scored(copied, rows, of="completion")
    assert [row["s_refused"] for row in found] == [None, "the model's logits are not finite", None]
    assert found[1]["s_logp"] is None
    assert found[2]["s_logp"] < 0


# In a run: what was scored before is not scored again.


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every call of the model."""
    score = LanguageModel.score
    found: list[int] = []

    def count(self: LanguageModel, *args: Any, **kwargs: Any) -> Any:
        before = self.forwarded
        try:
            return score(self, *args, **kwargs)
        finally:
            found.append(self.forwarded - before)

    monkeypatch.setattr(LanguageModel, "score", count)
    return found


def recipe(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    stage = {"operator": "logprobs", "name": "policy", "model": str(model), "of": "pair"}
    roles = {name: name for name in ("prompt", "chosen", "rejected", "id")}
    return {
        "corpus": {"path": str(folder / "in.parquet"), "roles": roles},
        "stages": [{**stage, "dtype": "float32", **changes}],
        "workspace": str(folder / "work"),
        "output": {
            "path": str(folder / "out"),
            "add": {"ref_chosen_logps": "policy_chosen_logp"},
        },
        "max_quarantine": 0.2,
        "workers": 1,
    }


def write_pairs(path: Path, count: int) -> None:
    texts = make_texts(3 * count, copies=0, words=20)
    columns = {"prompt": texts[::3], "chosen": texts[1::3], "rejected": texts[2::3]}
    table = pa.table({"id": [f"row-{i}" for i in range(count)], **columns})
    pq.write_table(table, path, row_group_size=20)


def test_more_rows_cost_only_themselves(
    models: dict[str, Path], tmp_path: Path, counted: list[int]
) -> None:
    wanted = recipe(tmp_path, models["qwen2"])
    write_pairs(tmp_path / "in.parquet", 40)
    tamis.run(wanted)
    first = sum(counted)
    write_pairs(tmp_path / "in.parquet", 50)
    tamis.run(wanted)
    more = sum(counted) - first
    assert 0 < more < first / 2
    counted.clear()
    wanted["stages"].append({"operator": "where", "keep": {"any": "policy_chosen_tokens > 3"}})
    tamis.run(wanted)
    assert sum(counted) == 0
    shutil.rmtree(tmp_path / "work")
    tamis.run(wanted)
    assert sum(counted) == first + more


def test_rows_that_cannot_be_scored_are_quarantined(
    models: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"id": str(i), **row} for i, row in enumerate(pairs(False))]
    rows += [{"id": "empty", "prompt": "", "chosen": "", "rejected": "a"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    run = tamis.run(recipe(tmp_path, models["qwen2"]))
    assert run.manifest["rows"]["quarantined"] == 1
    (name,) = json.loads((run.workspace / "manifest.json").read_text())["quarantine"]
    (aside,) = pq.read_table(run.workspace / name).to_pylist()
    assert aside["reason"] == "chosen: no token to score"
    (part,) = (tmp_path / "out").glob("*.parquet")
    written = pq.read_table(part)["ref_chosen_logps"]
    assert written.null_count == 0


_KILLED = """
import sys, json, tamis
from tamis.scoring.logprobs import Logprobs
Logprobs.portion_bytes = 3000
tamis.run(json.loads(sys.argv[1]))
"""


@pytest.mark.slow
def test_what_was_scored_before_a_kill_is_not_scored_again(
    models: dict[str, Path], tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "in.parquet", 400)
    wanted = recipe(tmp_path, models["qwen2"])
    told = [sys.executable, "-c", _KILLED, json.dumps(wanted)]
    process = subprocess.Popen(told, env={**os.environ, "OMP_NUM_THREADS": "1"})
    room = tmp_path / "work" / "signals" / "logprobs"
    for _ in range(6000):
        portions = list(room.glob("*/*.parquet"))
        if len(portions) >= 3 or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(portions) >= 3
    kept = sum(pq.read_metadata(path).num_rows for path in room.glob("*/*.parquet"))
    assert 0 < kept < 400
    monkeypatch.setattr(Logprobs, "portion_bytes", 3000)
    run = tamis.run(wanted)
    again = sum(counted)
    counted.clear()
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    shutil.rmtree(tmp_path / "work")
    tamis.run(wanted)
    whole = sum(counted)
    # A portion has about as many tokens as any other; those that were stored are missing.
    assert again == pytest.approx(whole * (1 - kept / 400), rel=0.1)
    assert run.manifest["rows"]["kept"] == 400
    tables = [
        pq.read_table(next((tmp_path / name).glob("*.parquet"))).to_pandas()
        for name in ("before", "out")
    ]
    np.testing.assert_allclose(*(t["ref_chosen_logps"] for t in tables), atol=1e-4)


def test_the_command_says_nothing_but_what_it_has_to_say(
    models: dict[str, Path], tmp_path: Path
) -> None:
    write_pairs(tmp_path / "in.parquet", 3)
    told = ["score", "logprobs", str(tmp_path / "in.parquet"), "--param", "of=pair"]
    told += ["--param", f"model={models['qwen2']}", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tamis.cli", *told], capture_output=True, text=True, check=True
    )
    assert "logprobs_chosen_logp" in done.stdout
    lines = done.stderr.splitlines()
    assert [line for line in lines if not line.startswith("tamis: ")] == []


def test_parameters_that_do_not_fit() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="a text has no prompt"):
        Logprobs(model="m", conditioned=False)
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Logprobs(model="m", min_k=[20])
    assert Logprobs(model="m", of="pair").used_roles() == ("prompt", "chosen", "rejected")


def test_a_model_is_loaded_once(models: dict[str, Path]) -> None:
    stage = Logprobs(model=str(models["gpt2"]), dtype="float32").resolve(Path())
    again = Logprobs(model=str(models["gpt2"]), name="other", of="pair", dtype="float32")
    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(lambda one: one.loaded(), [stage, again] * 2))
    assert len(set(map(id, loaded))) == 1


def test_alone_the_same_tokens_are_scored_as_after_the_prompt(models: dict[str, Path]) -> None:
    answer = "the wind in the reeds " * 9
    batch = pa.record_batch({"prompt": ["Say:", "Say:"], "completion": [answer, "no"]})
    tokens = {}
    for conditioned in (True, False):
        stage = Logprobs(
            model=str(models["llama"]), of="completion", conditioned=conditioned, max_tokens=40
        )
        tokens[conditioned] = stage.compute(batch)["logprobs_tokens"].to_pylist()
    # The tokenizer of the llama puts a BOS before a text; that of the GPT-2 does not.
    assert tokens[True] == tokens[False]
    without = Logprobs(model=str(models["gpt2"]), of="completion", conditioned=False)
    with_prompt = without.model_copy(update={"conditioned": True})
    for one, other in zip(
        with_prompt.compute(batch)["logprobs_tokens"].to_pylist(),
        without.compute(batch)["logprobs_tokens"].to_pylist(),
        strict=True,
    ):
        assert one == other + 1


def test_a_token_that_the_model_lacks_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "small"
    shutil.copytree(models["gpt2"], folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    texts = pa.record_batch({"text": ["a <new> word", "a plain word"]})
    found = Logprobs(model=str(folder)).compute(texts)["logprobs_refused"].to_pylist()
    assert "a token of the tokenizer that the model lacks" in found[0]
    assert found[1] is None


def test_a_message_that_is_null_is_refused_and_others_are_scored(models: dict[str, Path]) -> None:
    say = [{"role": "user", "content": "hello"}]
    answer = [{"role": "assistant", "content": "hello"}]
    batch = pa.record_batch({"prompt": [say, say], "completion": [[None], answer]})
    found = Logprobs(model=str(models["llama"]), of="completion").compute(batch)
    assert found["logprobs_refused"][0].as_py() == "a message that is null"
    assert found["logprobs_refused"][1].as_py() is None


def test_words_that_are_ruled_out_leave_the_others_their_scores() -> None:
    logits = torch.tensor([[0.0, float("-inf"), 1.0, float("-inf")]])

    def blocks(first: int, last: int) -> Iterator[tuple[int, Any]]:
        for word in (1, 3, 0, 2):  # the first of them has nothing but -inf
            yield word, logits[first:last, word : word + 1].clone()

    logps, entropy, top1 = token_stats(blocks, torch.tensor([0]), 8)
    expected = torch.log_softmax(torch.tensor([0.0, 1.0]), 0)
    assert logps[0] == pytest.approx(expected[0].item())
    assert entropy[0] == pytest.approx(-(expected.exp() * expected).sum().item())
    assert not top1[0]
