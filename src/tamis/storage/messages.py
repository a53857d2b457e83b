"""Answers as a column holds them: plain strings, or lists with one chat message each."""

import numpy as np
import pyarrow as pa


def is_plain_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, also dictionary-encoded ones."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def can_hold_id(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold an id that is a hash."""
    return is_plain_text(kind) or kind in (pa.int64(), pa.uint64())


def answers(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Texts as values of a column's type: as they are, or as a message of the assistant.

    Other fields of a message are null.

    Args:
        texts: strings.
        kind: a type of strings, or list of structs with the fields ``role`` and ``content``.

    Example:
        >>> message = pa.struct([("role", pa.string()), ("content", pa.string())])
        >>> answers(pa.array(["Yes."]), pa.list_(message)).to_pylist()
        [[{'role': 'assistant', 'content': 'Yes.'}]]
    """
    if pa.types.is_dictionary(kind):
        return texts.cast(kind.value_type).dictionary_encode().cast(kind)
    if is_plain_text(kind):
        return texts.cast(kind)
    message = kind.value_type
    given = {"role": pa.repeat("assistant", len(texts)), "content": texts}
    fields = [
        given[f.name].cast(f.type) if f.name in given else pa.nulls(len(texts), f.type)
        for f in message
    ]
    messages = pa.StructArray.from_arrays(fields, fields=list(message))
    offsets = np.arange(len(texts) + 1)
    if pa.types.is_large_list(kind):
        return pa.LargeListArray.from_arrays(pa.array(offsets), messages, type=kind)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), messages, type=kind)
