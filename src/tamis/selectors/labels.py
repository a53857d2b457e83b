"""The classes that rows are labelled with, as numbers."""

import re
from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tamis.selectors.table import Table
from tamis.storage.errors import UserError
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import Int64s

Int32s = npt.NDArray[np.int32]
#: What programs that hold all numbers as floats put behind an integer.
_ZEROS = re.compile(r"(?<=\d)\.0+$")


@dataclass(frozen=True)
class Labels:
    """Labels of a table's rows.

    Attributes:
        codes: int32 ``(n,)``, the number of every row's class.
        classes: their names as text, ascending by code point, so that a class has one number
            whatever the order of the rows.
    """

    codes: Int32s
    classes: list[str]


def is_label(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold one class a row."""
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_integer,
        pa.types.is_boolean,
        pa.types.is_floating,
    )
    return any(test(kind) for test in tests)


def labels_of(table: Table) -> Labels:
    """The classes in the role `label`.

    Raises:
        UserError: naming the row, if a label is nan or a fraction.
    """
    column = table.role("label")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = _whole(column, table)
    if not len(column):
        return Labels(np.zeros(0, np.int32), [])
    encoded = pc.dictionary_encode(column.cast(pa.large_string())).unify_dictionaries()
    named = encoded.combine_chunks()
    if isinstance(named, pa.ChunkedArray):
        named = pa.concat_arrays(named.chunks)
    names: list[str] = named.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    number = np.empty(len(names), np.int32)
    number[order] = np.arange(len(names), dtype=np.int32)
    return Labels(number[np.asarray(named.indices)], [names[place] for place in order])


def as_names(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Values of a column as the texts that name classes; null where they are null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_string())


def label_column(table: Table) -> str:
    """The corpus's column that holds the labels."""
    source = table.columns["label"]
    if isinstance(source, str):
        return source
    return next(name for name, given in table.rewritten.items() if given == source)


def fitting_names(names: list[str], table: Table) -> list[str]:
    """Names as the corpus's column of labels would hold them: ``TRUE`` as ``true``, and ``2.0`` as
    ``2`` where it holds integers.

    Raises:
        UserError: naming the first that the type of the column cannot hold.
    """
    column = label_column(table)
    kind = table.corpus.schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    found = []
    for name in names:
        plain = _ZEROS.sub("", name) if pa.types.is_integer(kind) else name
        try:
            value = pa.array([plain], pa.large_string()).cast(kind)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"the column {column!r} of type {kind} cannot hold the label {name!r}",
                where="corpus.roles.label",
                mend="give a label of that type, or store the labels as text",
            ) from error
        found.append(as_names(pa.chunked_array([value])).to_pylist()[0])
    return found


def all_classes(table: Table) -> set[str]:
    """Classes of all usable rows of the corpus, and those that stages have given since."""
    usable = ~table.rows.unusable
    corpus = replace(
        table,
        kept=usable,
        positions=np.flatnonzero(usable),
        columns={"label": label_column(table)},
        rewritten={},
        scores={},
    )
    return {*labels_of(corpus).classes, *labels_of(table).classes}


@dataclass
class NewLabels:
    """The labels of a table's rows, some of which are changed.

    Attributes:
        labels: before.
        codes: int32 ``(n,)``, places in `names`.
        names: the classes, then those that no row had.
    """

    labels: Labels
    codes: Int32s
    names: list[str]

    @classmethod
    def of(cls, table: Table) -> "NewLabels":
        labels = labels_of(table)
        return cls(labels, labels.codes.copy(), list(labels.classes))

    def code_of(self, name: str) -> int:
        """The place of a name, which is added if it is not there."""
        place = bisect_left(self.labels.classes, name)
        if place < len(self.labels.classes) and self.labels.classes[place] == name:
            return place
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    @property
    def changed(self) -> Int64s:
        """The rows with another label than before."""
        return np.flatnonzero(self.codes != self.labels.codes)

    def columns(self, stage: str) -> dict[str, pa.Array]:
        """The columns of `label_fields`."""
        names = pa.array(self.names, pa.large_string())
        now, before = (names.take(pa.array(codes)) for codes in (self.codes, self.labels.codes))
        return {f"{stage}_label": now, f"{stage}_given": before}


def label_fields(stage: str) -> list[pa.Field]:
    """``<stage>_label``, the label as text, and ``_given``, the one before."""
    return [
        pa.field(f"{stage}_label", pa.large_string(), nullable=False),
        pa.field(f"{stage}_given", pa.large_string(), nullable=False),
    ]


def _whole(column: pa.ChunkedArray, table: Table) -> pa.ChunkedArray:
    """Labels that were stored as floats, as integers."""
    value = np.asarray(column.cast(pa.float64()))
    bad = np.flatnonzero(~np.isfinite(value) | (value != np.round(value)))
    if len(bad):
        at = slice(bad[0], bad[0] + 1)
        raise UserError(
            f"label: expected classes, found {value[bad[0]]:g} in row "
            f"{hex_ids(table.id_hi[at], table.id_lo[at])[0]}",
            where="corpus.roles.label",
            mend="cut numbers into classes, and drop rows without one before",
        )
    return pa.chunked_array([value.astype(np.int64)])
