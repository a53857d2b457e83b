"""One row's way through a run, and its partner's or parent's, as far as the chain goes."""

import re
from typing import Any

import duckdb

from tamis.storage.catalog import open_catalog
from tamis.storage.errors import UserError
from tamis.storage.places import Place


def explain(workspace: Place, row_id: str, copy: int | None = None) -> list[dict[str, Any]]:
    """The row's entry in the view ``why``, then those of its partner, its partner's partner, …

    A generated row is followed by its parent.

    Args:
        row_id: 32 hex digits, or the first of them if they tell a row apart.
        copy: which of several rows that share the id; the first if not given.

    Raises:
        UserError: if there is no such row, or several that differ.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{1,32}", row_id):
        raise UserError(f"expected up to 32 hex digits, found {row_id!r}", where="row_id")
    chain: list[dict[str, Any]] = []
    with open_catalog(workspace) as connection:
        full, number = _resolve(connection, row_id.lower(), copy)
        while True:
            entry = _entry(connection, full, number)
            chain.append(entry)
            if entry["parent"] is not None:
                full, number = entry["parent"], entry["parent_copy"]
            elif entry["partner"] is not None and entry["partner_source"] is None:
                full, number = entry["partner"], entry["partner_copy"]
            else:
                return chain


def _resolve(
    connection: duckdb.DuckDBPyConnection, prefix: str, copy: int | None
) -> tuple[str, int]:
    low, high = prefix.ljust(32, "0"), prefix.ljust(32, "f")
    found = connection.execute(
        "SELECT id_hi, id_lo, copy FROM ledger WHERE id_hi BETWEEN $a AND $b "
        "AND (id_hi > $a OR id_lo >= $c) AND (id_hi < $b OR id_lo <= $d) "
        "AND ($copy IS NULL OR copy = $copy) ORDER BY id_hi, id_lo, copy LIMIT 2000",
        {
            "a": int(low[:16], 16),
            "b": int(high[:16], 16),
            "c": int(low[16:], 16),
            "d": int(high[16:], 16),
            "copy": copy,
        },
    ).fetchall()
    if not found:
        raise UserError(f"no row {prefix}", mend="ids are in the column row_id of every view")
    if len({row[:2] for row in found}) > 1:
        raise UserError(f"several rows begin with {prefix}", mend="give more digits")
    return f"{found[0][0]:016x}{found[0][1]:016x}", int(found[0][2])


def _entry(connection: duckdb.DuckDBPyConnection, row_id: str, copy: int) -> dict[str, Any]:
    relation = connection.execute("SELECT * FROM why WHERE row_id = ? AND copy = ?", [row_id, copy])
    names = [column[0] for column in relation.description or ()]
    row = relation.fetchone()
    assert row is not None
    return dict(zip(names, row, strict=True))
