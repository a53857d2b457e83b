"""The second path: Cyrillic, Turkish, Thai, CJK, emoji and marks."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.scoring.text_stats import TextStats
from tests.scoring.test_minhash import sets_of

SCRIPTS = {
    "cyrillic": "Съешь ещё этих мягких французских булок, да выпей же чаю. Йод и ёлка",
    "turkish": "İstanbul'da ılık bir IŞIK, diğer şehirlerde ağır kış; İĞNE ile ıssız DIŞ kapı",
    "thai": "สวัสดีครับ วันนี้อากาศดีมาก ผมไปตลาดน้ำกับเพื่อน",
    "greek": "ΟΔΥΣΣΕΥΣ και οδυσσεύς, ο πολύτροπος ἀνήρ",
    "german": "Die STRASSE und die Straße sind eins, ÄRGER wie Ärger",
    "vietnamese": "Tiếng Việt có nhiều dấu thanh: ngã, hỏi, nặng, sắc, huyền",
    "korean": "한국어 문장은 띄어쓰기가 있습니다 그리고 자모로 풀립니다",
    "hindi": "हिन्दी में मात्राएँ होती हैं और शब्द अलग होते हैं",
    "japanese": "ガラスのコップが割れました。パパとママは驚いた",
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_composition_does_not_matter(text: str) -> None:
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    first, *others = sets_of(forms)
    assert all(other == first for other in others)


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_case_does_not_matter(text: str) -> None:
    first, *others = sets_of([text, text.upper(), text.lower(), text.casefold(), text.title()])
    assert all(other == first for other in others)


def test_turkish_case_rules_give_the_same_words_too() -> None:
    upper = "İSTANBUL'DA ILIK BİR IŞIK DİĞER ŞEHİRLERDE AĞIR KIŞ"
    lower = "istanbul'da ılık bir ışık diğer şehirlerde ağır kış"
    assert sets_of([upper])[0] == sets_of([lower])[0]


def count_words(*texts: str) -> list[int]:
    import pyarrow as pa

    return TextStats().compute(pa.record_batch({"text": pa.array(texts)}))["words"].to_pylist()  # type: ignore[no-any-return]


def test_scripts_without_spaces_give_a_word_a_character() -> None:
    assert count_words("今日は世界", "กขค", "ab今cd", "कखग घ") == [5, 3, 3, 2]


def test_marks_stay_with_their_letter() -> None:
    assert count_words("cafe\u0301 noir", "น้ำ") == [2, 2]
    a, b = sets_of(["cafe noir", "café noir"])
    assert a != b


def test_emoji_are_words_and_variation_selectors_are_nothing() -> None:
    assert count_words("lol 😂", "👍🏽", "❤️ ❤") == [2, 2, 2]
    a, b, c = sets_of(["lol 😂", "lol 😭", "❤"])
    assert a != b
    assert sets_of(["❤️"])[0] == c


def test_an_ascii_word_has_one_hash_on_both_paths() -> None:
    ascii_only, mixed = sets_of(
        ["the quick brown fox jumps over it", "the quick brown fox jumps over it “quoted”"]
    )
    assert ascii_only < mixed


def test_a_word_may_pass_from_ascii_to_beyond_and_back() -> None:
    assert count_words("naïve", "déjà-vu x2½") == [1, 4]


def test_marks_in_any_order_are_equal() -> None:
    dot_below_first, acute_first = "a\u0323\u0301", "a\u0301\u0323"
    assert sets_of([dot_below_first])[0] == sets_of([acute_first])[0]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80))
def test_any_text_equals_its_decomposition(text: str) -> None:
    text = text.replace("\x00", "")
    if any(unicodedata.category(c) == "Cn" for c in text):
        return
    if not sets_of([text]) or count_words(text) == [0]:
        return  # without a word a document is its bytes
    forms = [text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)]
    first, *others = sets_of(forms)
    assert all(other == first for other in others)
