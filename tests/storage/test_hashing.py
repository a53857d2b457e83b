"""Row hashes depend on values, not on how Arrow holds them."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.storage.errors import UserError
from tamis.storage.grouping import counting_sort, first_with_key, first_with_pair
from tamis.storage.hashing import hash_array, hash_columns, hex_ids

NESTED = [
    {"a": 1, "b": ["x", None], "c": {"d": 2.5}},
    None,
    {"a": None, "b": None, "c": None},
    {"a": 1, "b": [], "c": {"d": float("nan")}},
]

ARRAYS = {
    "nested": pa.array(NESTED),
    "map": pa.array([[("a", 1)], None, [], [("b", 2), ("c", 3)]], pa.map_(pa.string(), pa.int64())),
    "fixed list": pa.array([[1, 2], None, [3, 3], [1, 2]], pa.list_(pa.int32(), 2)),
    "large list": pa.array([["a"], None, ["", "b"], []], pa.large_list(pa.string())),
    "zoned": pa.array([0, 1, None, 3], pa.timestamp("us", "Europe/Rome")),
    "date64": pa.array([datetime.date(2020, 1, 1), None, datetime.date(1969, 1, 1)], pa.date64()),
    "decimal": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-3")]),
    "fixed binary": pa.array([b"abcde", None, b"vwxyz"], pa.binary(5)),
    "half": pa.array(np.array([1.5, 0.0, 2.0], np.float16)),
    "bool": pa.array([True, None, False, True]),
    "null": pa.nulls(4),
    "view": pa.array(["a", None, "a long string beyond twelve bytes"], pa.string_view()),
    "dictionary": pa.array(["a", "b", None, "a"]).dictionary_encode(),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_slices_hash_as_the_whole(array: pa.Array) -> None:
    whole = hex_ids(*hash_array(array))
    for first in range(len(array)):
        assert hex_ids(*hash_array(array.slice(first))) == whole[first:]
        assert hex_ids(*hash_array(array.slice(first, 1))) == whole[first : first + 1]


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_equal_values_hash_alike_and_others_differ(array: pa.Array) -> None:
    seen: dict[str, str] = {}
    for value, key in zip(map(repr, array.to_pylist()), hex_ids(*hash_array(array)), strict=True):
        assert seen.setdefault(value, key) == key
    assert len(set(seen.values())) == len(seen)


def test_representation_does_not_matter() -> None:
    values = ["a", None, "", "ünï", "a"]
    kinds = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ]
    first, *others = [hex_ids(*hash_array(pa.array(values, kind))) for kind in kinds]
    assert all(other == first for other in others)


def test_columns_hash_in_any_order_but_by_name() -> None:
    a, b = pa.array([1, 2]), pa.array(["x", "y"])
    assert hex_ids(*hash_columns(["a", "b"], [a, b], 2)) == hex_ids(
        *hash_columns(["b", "a"], [b, a], 2)
    )
    assert hex_ids(*hash_columns(["a"], [a], 2)) != hex_ids(*hash_columns(["c"], [a], 2))


def test_null_and_empty_differ() -> None:
    assert len(set(hex_ids(*hash_array(pa.array(["", None, "0"]))))) == 3
    assert len(set(hex_ids(*hash_array(pa.array([[], None, [None]], pa.list_(pa.int8())))))) == 3


def test_unions_are_refused() -> None:
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])])
    with pytest.raises(UserError, match="identity"):
        hash_array(union)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=60))
def test_distinct_bytes_have_distinct_hashes(values: list[bytes]) -> None:
    keys = hex_ids(*hash_array(pa.array(values, pa.binary())))
    assert len(set(keys)) == len(set(values))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=80))
def test_grouping_finds_the_first_of_every_key(keys: list[int]) -> None:
    expected = [keys.index(key) for key in keys]
    array = np.array(keys, np.uint64)
    assert first_with_key(array).tolist() == expected
    assert first_with_pair(array, array * np.uint64(3)).tolist() == expected
    order, start = counting_sort(array.astype(np.int32), 10)
    assert [keys[i] for i in order] == sorted(keys)
    assert start[-1] == len(keys)
    assert list(order) == sorted(range(len(keys)), key=lambda i: keys[i])
