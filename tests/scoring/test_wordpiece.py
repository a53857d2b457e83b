"""Tokens by table and hash: those of the tokenizers library, for every text."""

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tamis.scoring.wordpiece import WordPieces, piece_ids, spells_special, word_pieces
from tests.conftest import make_texts

PIECES = [
    *("[PAD]", "[UNK]", "the", "sieve", "##s", "##ing", "un", "##known", "naive", "strasse"),
    *("漢", "字", "か", "##な", "!", ",", ".", "-", "##-", "ᄒ", "##ᅡ", "##ᆫ", "ß"),
    *(chr(c) for c in range(97, 123)),
    *("##" + chr(c) for c in range(97, 123)),
    *(str(d) for d in range(10)),
]


def tokenizer(**options: object) -> Tokenizer:
    found = Tokenizer(
        models.WordPiece(
            {piece: i for i, piece in enumerate(PIECES)},
            unk_token="[UNK]",
            max_input_chars_per_word=20,
        )
    )
    found.normalizer = normalizers.BertNormalizer(**options)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.add_special_tokens(["[PAD]", "[UNK]"])
    return found


@pytest.fixture(scope="module")
def known() -> tuple[Tokenizer, WordPieces]:
    made = tokenizer()
    tables = word_pieces(made)
    assert tables is not None
    return made, tables


def same(known: tuple[Tokenizer, WordPieces], text: str) -> None:
    assert piece_ids(text, known[1]) == known[0].encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "The sieves, unknown!", "naïve NAÏVE nai\u0308ve", "Straße", "İstanbul ΣΑΣ"),
        *(
            "漢字かな",
            "한",
            "e\u0301",
            "👩‍👩‍👧",
            "a\x00b",
            "a\u200bb",
            "a\ufffdb",
            "\u3000x\u00a0y",
        ),
        *("x" * 20, "x" * 21, "x" * 5000, "a-b--c", "the" * 50, "tab\there\r\nand\u2028there"),
        *("\U0001d15e\U000e0100\U00030000\U000fffff\U0010ffff", "\u0301", "ﬁ ǆ ½ ²"),
    ],
)
def test_a_text(known: tuple[Tokenizer, WordPieces], text: str) -> None:
    same(known, text)


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text(known: tuple[Tokenizer, WordPieces], text: str) -> None:
    same(known, text)


def test_every_character(known: tuple[Tokenizer, WordPieces]) -> None:
    codes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    random.Random(0).shuffle(codes)
    for begin in range(0, len(codes), 50_000):
        same(known, "a".join(map(chr, codes[begin : begin + 50_000])))


def test_long_texts_come_in_parts(known: tuple[Tokenizer, WordPieces]) -> None:
    for text in make_texts(20, words=3000, copies=0):
        same(known, text)
    same(known, "漢" * 10_000)
    same(known, "한" * 10_000)


@pytest.mark.parametrize(
    "options",
    [
        {"lowercase": False},
        {"strip_accents": False},
        {"handle_chinese_chars": False},
        {"clean_text": False},
    ],
)
def test_other_settings(options: dict[str, bool]) -> None:
    made = tokenizer(**options)
    tables = word_pieces(made)
    assert tables is not None
    for text in ("The Sieve", "naïve", "a漢b", "a\x00 b\tc", "한글", "É!"):
        same((made, tables), text)


def test_another_kind_of_tokenizer_has_no_tables() -> None:
    made = tokenizer()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    assert word_pieces(made) is None
    assert word_pieces(Tokenizer(models.BPE())) is None


def test_spelt_special_tokens_are_found(known: tuple[Tokenizer, WordPieces]) -> None:
    texts = pa.array(["a [PAD] b", "[pad]", "", "x[UNK]"])
    assert spells_special(known[0], texts).tolist() == [True, False, False, True]


def test_real_texts(known: tuple[Tokenizer, WordPieces], shared_data: Path) -> None:
    import polars as pl

    texts = pl.read_parquet(shared_data / "domains_text.parquet")["text"].gather_every(100)
    for text in texts.to_list():
        same(known, text)
