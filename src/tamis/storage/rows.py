"""Who is who: row ids, copies, and the rows that cannot be used."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from tamis.storage.corpus import Corpus, Shard, shards_in, starts_of
from tamis.storage.errors import UserError
from tamis.storage.files import digest_of
from tamis.storage.grouping import first_with_pair
from tamis.storage.hashing import hash_batch, hex_ids
from tamis.storage.ingest import UNREAD, lines_of
from tamis.storage.kernels import Int64s, UInt64s
from tamis.storage.places import Place, parquet_file, place_errors, place_of
from tamis.storage.sidecar import Part, sidecar_batches, sidecar_once, sidecar_path
from tamis.storage.tasks import Done, Runner, Task

UInt32s = npt.NDArray[np.uint32]
OnDuplicateId = Literal["error", "copy"]

#: Rows are numbered by 32-bit integers where they are grouped.
MOST_ROWS = (1 << 31) - 1

_IDENTITY_VERSION = 1
_IDS = pa.schema([("id_hi", pa.uint64()), ("id_lo", pa.uint64()), ("unusable", pa.bool_())])


@dataclass(frozen=True)
class Rows:
    """Every row of the shards, in corpus order.

    Attributes:
        id_hi, id_lo: the row_id, as two uint64.
        copy: number of the row among those that share its row_id, in order of content.
        unusable: bool, a role column that must hold text is null there; quarantined.
        start: int64, position of every shard's first row, and the number of rows last.
    """

    id_hi: UInt64s
    id_lo: UInt64s
    copy: UInt32s
    unusable: npt.NDArray[np.bool_]
    start: Int64s

    def digest(self, shard: Shard) -> str:
        """Of the ids, copies and usability of a shard's rows."""
        here = self.of(shard)
        state = xxhash.xxh3_128()
        for column in (self.id_hi, self.id_lo, self.copy, self.unusable):
            state.update(np.ascontiguousarray(column[here]).data)
        return state.hexdigest()

    def of(self, shard: Shard) -> slice:
        """Positions of a shard's rows."""
        return slice(int(self.start[shard.index]), int(self.start[shard.index + 1]))


def bad_rows(corpus: Corpus, rows: Rows, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Lines that no shard holds, then rows without text, file by file (schema `ingest.UNREAD`).

    Args:
        columns: that must not be null.
    """
    for unread in corpus.unread:
        with place_errors(unread), parquet_file(unread) as file:
            yield file.read()
    for shard in corpus.shards:
        bad = np.flatnonzero(rows.unusable[rows.of(shard)])
        if len(bad):
            values = shard.table(columns).take(pa.array(bad))
            empty = np.array([np.asarray(values[name].is_null()) for name in columns])
            first = empty.argmax(axis=0)
            reasons = [f"column {columns[at]!r}: expected a value, found null" for at in first]
            yield from rows_of(corpus, rows, rows.start[shard.index] + bad, reasons)


def rows_of(
    corpus: Corpus, rows: Rows, positions: Int64s, reasons: Sequence[str]
) -> Iterator[pa.Table]:
    """Rows of the corpus as quarantine lists them, shard by shard (schema `ingest.UNREAD`).

    Args:
        positions: ascending.
        reasons: of each of them.
    """
    cuts = np.searchsorted(positions, rows.start)
    for shard in corpus.shards:
        mine = slice(int(cuts[shard.index]), int(cuts[shard.index + 1]))
        here = positions[mine]
        if len(here):
            columns = {
                "file": pa.array([shard.source] * len(here)),
                "line": pa.array(lines_of(shard, here - rows.start[shard.index])),
                "row_id": pa.array(hex_ids(rows.id_hi[here], rows.id_lo[here])),
                "reason": pa.array(reasons[mine]),
                "raw": pa.nulls(len(here), pa.binary()),
            }
            yield pa.table(columns, schema=UNREAD)


def examples_of(rows: list[dict[str, Any]]) -> str:
    """Some bad rows, as a message shows them."""
    return "; ".join(f"{r['file']} line {r['line']}: {r['reason']}" for r in rows)


class Identify(Task):
    """Write the ids of a shard's rows into a sidecar.

    Attributes:
        shards: list of shards, see `Corpus.keep`.
        folder: where the sidecars lie.
        identity: columns that make the id.
        required: columns that must not be null.
    """

    task: Literal["identify"] = "identify"
    label: ClassVar[str] = "row ids"
    shards: str
    folder: str
    identity: list[str]
    required: list[str]

    def place(self, shard: Shard) -> tuple[Place, str]:
        """Path and step of a shard's sidecar."""
        step = digest_of(["ids", _IDENTITY_VERSION, sorted(self.identity), sorted(self.required)])
        return sidecar_path(place_of(self.folder), shard, digest_of([step, shard.digest])), step

    def run(self, item: int) -> None:
        shard = shards_in(self.shards)[item]
        path, step = self.place(shard)
        ids = partial(_hash_rows, shard, self.identity, self.required)
        sidecar_once(path, shard, step, _IDS, ids)


def identify(
    corpus: Corpus,
    task: Identify,
    runner: Runner,
    *,
    explicit_id: bool,
    on_duplicate_id: OnDuplicateId = "error",
    done: Done | None = None,
) -> Rows:
    """Give every row its id and copy number.

    Args:
        explicit_id: whether the user named an id column: rows that share it must be equal.

    Raises:
        UserError: if an id stands for rows with different content and that is not allowed, or if
            there are more than `MOST_ROWS`.
    """
    if corpus.rows > MOST_ROWS:
        raise UserError(
            f"{corpus.rows:,} rows are more than one run can number, which is {MOST_ROWS:,}",
            where="corpus",
            mend="split the corpus into several runs",
        )
    runner.map(task, corpus.sizes, done)
    start = starts_of(corpus.shards)
    id_hi, id_lo = np.empty(corpus.rows, np.uint64), np.empty(corpus.rows, np.uint64)
    unusable = np.empty(corpus.rows, np.bool_)
    for shard in corpus.shards:
        path, step = task.place(shard)
        row = int(start[shard.index])
        for batch in sidecar_batches(path, shard, step, _IDS.names):
            here = slice(row, row + batch.num_rows)
            id_hi[here], id_lo[here] = batch["id_hi"].to_numpy(), batch["id_lo"].to_numpy()
            unusable[here] = batch["unusable"].to_numpy(zero_copy_only=False)
            row = here.stop
    copy = _number_copies(corpus, id_hi, id_lo, start, explicit_id, on_duplicate_id)
    return Rows(id_hi, id_lo, copy, unusable, start)


def _hash_rows(shard: Shard, identity: list[str], required: list[str]) -> Iterator[Part]:
    required = [name for name in required if shard.may_be_null(name)]
    begin = 0
    for batch in shard.batches(list(dict.fromkeys([*identity, *required]))):
        hashes = hash_batch(batch.select(identity))
        missing = np.zeros(batch.num_rows, np.bool_)
        for name in required:
            missing |= np.asarray(batch[name].is_null())
        columns = [pa.array(hashes.high), pa.array(hashes.low), pa.array(missing)]
        rows = np.arange(begin, begin + batch.num_rows, dtype=np.int64)
        yield rows, pa.record_batch(columns, schema=_IDS)
        begin += batch.num_rows


def _number_copies(
    corpus: Corpus,
    id_hi: UInt64s,
    id_lo: UInt64s,
    start: Int64s,
    explicit_id: bool,
    on_duplicate_id: OnDuplicateId,
) -> UInt32s:
    copy = np.zeros(len(id_hi), np.uint32)
    first = first_with_pair(id_hi, id_lo)
    repeats = np.flatnonzero(first != np.arange(len(first), dtype=np.int32))
    if len(repeats) == 0:
        return copy
    sharing = np.unique(np.r_[repeats, first[repeats]])
    group = first[sharing]
    content_hi, content_lo = np.zeros(len(sharing), np.uint64), np.zeros(len(sharing), np.uint64)
    if explicit_id:
        content_hi, content_lo = _content(corpus, sharing, start)
    # Rows equal in content are interchangeable, so the order among them may be that of position.
    order = np.lexsort((content_lo, content_hi, group))
    ordered = group[order]
    same = np.r_[False, ordered[1:] == ordered[:-1]]
    if on_duplicate_id == "error" and explicit_id:
        differs = (
            same
            & np.r_[
                False,
                (content_hi[order][1:] != content_hi[order][:-1])
                | (content_lo[order][1:] != content_lo[order][:-1]),
            ]
        )
        if differs.any():
            at = int(np.flatnonzero(differs)[0])
            places = [_place(corpus, int(sharing[order[i]]), start) for i in (at - 1, at)]
            here = int(sharing[order[at]])
            raise UserError(
                f"row_id {hex_ids(id_hi[here : here + 1], id_lo[here : here + 1])[0]} stands for "
                f"different rows: {places[0]} and {places[1]}",
                mend="make the id column unique, or set `on_duplicate_id: copy`",
            )
    begins = np.flatnonzero(~same)
    within = np.arange(len(order)) - np.repeat(begins, np.diff(np.r_[begins, len(order)]))
    copy[sharing[order]] = within.astype(np.uint32)
    return copy


def _content(corpus: Corpus, positions: Int64s, start: Int64s) -> tuple[UInt64s, UInt64s]:
    """Hash of all columns of some rows."""
    high, low = [], []
    for shard in corpus.shards:
        begin = int(start[shard.index])
        wanted = positions[(positions >= begin) & (positions < start[shard.index + 1])]
        for batch in shard.batches(corpus.schema.names) if len(wanted) else ():
            inside = wanted[(wanted >= begin) & (wanted < begin + batch.num_rows)]
            hashes = hash_batch(batch.take(pa.array(inside - begin)))
            high.append(hashes.high)
            low.append(hashes.low)
            begin += batch.num_rows
    return np.concatenate(high), np.concatenate(low)


def _place(corpus: Corpus, position: int, start: Int64s) -> str:
    shard = corpus.shards[int(np.searchsorted(start, position, side="right")) - 1]
    (line,) = lines_of(shard, np.array([position - int(start[shard.index])]))
    return f"{shard.source} row {line}"
