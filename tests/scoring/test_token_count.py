"""Token counts: the tokenizer's own, one text at a time, and an estimate that is called one."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from tamis.scoring import token_count
from tamis.scoring.token_count import TokenCount
from tamis.storage.errors import UserError
from tests.conftest import make_texts


def counted(texts: list[str], **params: object) -> list[int]:
    batch = pa.record_batch({"text": pa.array(texts, pa.string())})
    (column,) = TokenCount(**params).compute(batch).columns  # type: ignore[arg-type]
    return column.to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer that would add, cut off and pad if one let it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(make_texts(50), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(pad_id=1, pad_token="<pad>")
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def reference(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


TEXTS = [
    *make_texts(60),
    "",
    " ",
    "漢字とかな",
    "e\u0301",
    "👩‍👩‍👧",
    "a\r\nb",
    "<s><pad>",
    "x" * 5000,
]


def test_equals_the_tokenizer_one_text_at_a_time(file: Path) -> None:
    expected = [len(reference(file).encode(t, add_special_tokens=False)) for t in TEXTS]
    assert counted(TEXTS, tokenizer=file) == expected
    assert max(expected) > 8  # nothing was cut off
    assert expected[60] == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4000), st.integers(0, 20))
def test_no_count_depends_on_the_batch(file: Path, size: int, skip: int) -> None:
    whole = counted(TEXTS, tokenizer=file)
    batch = pa.record_batch({"text": pa.array(TEXTS)}).slice(skip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_count, "CALL_BYTES", size)
        found = TokenCount(tokenizer=file).compute(batch)
    assert found["tokens"].to_pylist() == whole[skip:]


def test_an_estimate_is_the_bytes_rounded_up() -> None:
    assert counted(["", "a", "abcd", "abcde", "漢字"], bytes_per_token=4) == [0, 1, 1, 2, 2]


def test_a_count_and_an_estimate_have_different_names(file: Path) -> None:
    assert TokenCount(tokenizer=file).fields().names == ["tokens"]
    assert TokenCount(bytes_per_token=3.5).fields().names == ["tokens_estimated"]


@pytest.mark.parametrize("params", [{}, {"bytes_per_token": 0}, {"tokenizer": "/no/such.json"}])
def test_there_is_no_hidden_default(params: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TokenCount(**params)  # type: ignore[arg-type]


def test_only_one_of_the_two(file: Path) -> None:
    with pytest.raises(ValidationError, match="either `tokenizer` or `bytes_per_token`"):
        TokenCount(tokenizer=file, bytes_per_token=4)


def test_the_key_holds_what_the_file_says_and_not_where_it_lies(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "other.json"
    copy.write_bytes(file.read_bytes())
    assert TokenCount(tokenizer=copy).key_parts() == TokenCount(tokenizer=file).key_parts()
    copy.write_bytes(file.read_bytes() + b"\n")
    assert TokenCount(tokenizer=copy).key_parts() != TokenCount(tokenizer=file).key_parts()


def test_another_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer"):
        counted(["a"], tokenizer=path)


def test_a_missing_library_is_one_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_count, "find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"pip install 'tamis\[tokens\]'"):
        TokenCount(tokenizer=file)
    assert counted(["abcd"], bytes_per_token=4) == [1]
