"""DuckDB views over what a workspace holds. The catalog is made anew at the end of every run."""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from tamis.storage.errors import UserError
from tamis.storage.files import read_json, whole_file
from tamis.storage.places import (
    WEB,
    Place,
    absolute,
    is_remote,
    kind_of,
    place_errors,
    place_of,
    shown,
)

CATALOG = "catalog.duckdb"
WORKSPACE_MANIFEST = "manifest.json"

_FILE, _ROW = "__tamis_file", "__tamis_row"
_ROW_ID = "format('{{:016x}}{{:016x}}', {0}_hi, {0}_lo)"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _parquet(paths: list[str], options: str = "") -> str:
    return f"read_parquet([{', '.join(_quoted(_no_pattern(path)) for path in paths)}]{options})"


def _no_pattern(path: str) -> str:
    """A URL in which DuckDB finds no pattern; local files it looks for by their very names."""
    return re.sub(r"([*?[])", r"[\1]", path) if "://" in path else path


def _fill(connection: duckdb.DuckDBPyConnection, workspace: Place) -> None:
    """Make the views: those of ``rows``, ``scores``, ``signals``, ``decisions``, and more.

    Raises:
        UserError: if no run has ended in this workspace.
    """
    workspace = absolute(workspace)
    place = workspace / WORKSPACE_MANIFEST
    if kind_of(place) is None:
        raise UserError(
            "no finished run here", where=shown(workspace), mend="name the workspace of a run"
        )
    with place_errors(place):
        manifest = read_json(place)
    manifest = _with_generated(manifest)
    # DuckDB reaches stores as tamis itself does, with the same credentials.
    places = [workspace, *(_absolute(workspace, s["path"]) for s in manifest["shards"])]
    stores = {found.protocol: found.fs for found in places if not isinstance(found, Path)}
    for protocol, store in stores.items():
        connection.register_filesystem(_web() if protocol in WEB else store)
    for statement in (
        *_ledger(workspace, manifest),
        _decisions(),
        _rows(workspace, manifest),
        _scores(workspace, manifest, "scores"),
        _scores(workspace, manifest, "signals"),
        _runs(workspace),
        _why(manifest),
        _certificates(manifest),
        _generated(workspace, manifest),
    ):
        connection.execute(statement)


def _with_generated(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest as if generated rows were further shards of the corpus."""
    shards, ledger = list(manifest["shards"]), list(manifest["ledger"])
    scores = {view: dict(manifest[view]) for view in ("scores", "signals")}
    for made in manifest.get("generated", {}).values():
        shards += [{**s, "shard": len(shards) + at} for at, s in enumerate(made["shards"])]
        ledger += made["ledger"]
        for found in scores.values():
            for name in found.keys() & made["scores"].keys():
                files = [*found[name]["files"], *made["scores"][name]]
                found[name] = {**found[name], "files": files}
    return {**manifest, "shards": shards, "ledger": ledger, **scores}


def _web() -> Any:
    """A web server as DuckDB wants it: with a time of change, which fsspec has none of."""
    from fsspec.implementations.http import HTTPFileSystem

    class Web(HTTPFileSystem):  # type: ignore[misc]
        def modified(self, path: str) -> datetime:
            return datetime(1970, 1, 1)

    return Web()


def _ledger(workspace: Place, manifest: dict[str, Any]) -> list[str]:
    """Shards by number, and the ledger with that number in place of the shard's digest."""
    files = [str(workspace / name) for name in manifest["ledger"]]
    values = ", ".join(
        f"({s['shard']}, {_quoted(s['digest'])}, {_quoted(str(_absolute(workspace, s['path'])))}, "
        f"{s['first_row']}, {_quoted(s['source'])})"
        for s in manifest["shards"]
    )
    nothing = "(0, '', '', 0, '')"
    limit = "" if values else " LIMIT 0"
    return [
        f"CREATE VIEW shards AS SELECT * FROM (VALUES {values or nothing}) "
        f"t(shard, digest, path, first_row, source){limit}",
        f"CREATE VIEW ledger AS SELECT s.shard, s.digest, l.* EXCLUDE (shard) FROM "
        f"{_parquet(files)} l JOIN shards s ON s.digest = l.shard",
    ]


def _decisions() -> str:
    partner = f"CASE WHEN partner_hi IS NOT NULL THEN {_ROW_ID.format('partner')} END"
    parent = f"CASE WHEN parent_hi IS NOT NULL THEN {_ROW_ID.format('parent')} END"
    return f"""CREATE VIEW decisions AS SELECT {_ROW_ID.format("id")} AS row_id, copy, action,
        repeat, weight, stage, reason, value, threshold, rules, {partner} AS partner,
        partner_copy, partner_source, evidence, similarity, {parent} AS parent, parent_copy,
        shard, row FROM ledger"""


def _rows(workspace: Place, manifest: dict[str, Any]) -> str:
    named = [column for column in manifest["columns"] if column]  # SQL has no name for ''
    columns = ", ".join(f"c.{_name(column)}" for column in named)
    head = f"SELECT {_ROW_ID.format('d.id')} AS row_id, d.copy, d.shard, d.row"
    files = list(dict.fromkeys(str(_absolute(workspace, s["path"])) for s in manifest["shards"]))
    if not files or not named:
        nulls = "".join(f", NULL AS {_name(column)}" for column in manifest["columns"] if column)
        return f"CREATE VIEW rows AS {head}{nulls} FROM ledger d"
    return f"""CREATE VIEW rows AS {head}, {columns} FROM ledger d
    JOIN shards s ON s.shard = d.shard
    JOIN {_numbered(files, named)} c ON c.{_FILE} = s.path AND c.{_ROW} = s.first_row + d.row"""


def _numbered(files: list[str], columns: list[str]) -> str:
    """The corpus with the file and the row in it, under names that no column has taken."""
    if "file_row_number" not in map(str.lower, columns):
        options = f", filename = '{_FILE}', file_row_number = true"
        return f"(SELECT *, file_row_number AS {_ROW} FROM {_parquet(files, options)})"
    # DuckDB's own numbering has that one name only.
    each = (
        f"SELECT *, {_quoted(file)} AS {_FILE}, row_number() OVER () - 1 AS {_ROW} "
        f"FROM {_parquet([file])}"
        for file in files
    )
    return f"({' UNION ALL BY NAME '.join(each)})"


def _absolute(workspace: Place, path: str) -> Place:
    found = place_of(path)
    return found if is_remote(found) or Path(path).is_absolute() else workspace / path


def _scores(workspace: Place, manifest: dict[str, Any], view: str) -> str:
    """The view ``scores`` or ``signals``."""
    columns = ""
    joins = ""
    for index, found in enumerate(manifest[view].values()):
        alias = f"s{index}"
        if not found["files"]:
            columns += "".join(f", NULL AS {_name(name)}" for name in found["columns"])
            continue
        columns += "".join(
            f", {alias}.{_name(stored)} AS {_name(name)}"
            for name, stored in found["columns"].items()
        )
        files = [str(workspace / name) for name in found["files"]]
        joins += f" LEFT JOIN {_parquet(files)} {alias} ON {alias}.shard = d.digest"
        joins += f" AND {alias}.row = d.row"
    return (
        f"CREATE VIEW {view} AS SELECT {_ROW_ID.format('d.id')} AS row_id, d.copy, d.shard, "
        f"d.row{columns} FROM ledger d{joins}"
    )


def _content(roles: dict[str, str | None], rows: str) -> str:
    """What a row says: its text, or prompt and answers as JSON; nothing without such a role."""
    if roles.get("text"):
        return f"{rows}.{_name(str(roles['text']))}"
    parts = {name: roles.get(name) for name in ("prompt", "completion", "chosen", "rejected")}
    packed = [f"{name} := {rows}.{_name(column)}" for name, column in parts.items() if column]
    # Where a row has no partner there is nothing to show, not an object of nulls.
    shown = f"to_json(struct_pack({', '.join(packed)}))::VARCHAR"
    return f"CASE WHEN {rows}.row_id IS NOT NULL THEN {shown} END" if packed else ""


def _why(manifest: dict[str, Any]) -> str:
    names = [
        name
        for found in manifest["scores"].values()
        for name in found["columns"]
        if name not in found.get("in_ledger", ())
    ]
    packed = ", ".join(f"{_name(name)} := s.{_name(name)}" for name in names)
    scores = f"struct_pack({packed})" if names else "NULL"
    roles = manifest["recipe"]["corpus"]["roles"]
    # The text that was compared: the last that a stage made of it before the row was dropped.
    made = [_name(name) for name in reversed(manifest.get("rewritten", {}).get("text", []))]
    mine, theirs = (
        f"COALESCE({', '.join([*(f'{s}.{name}' for name in made), content])})"
        if content
        else "NULL"
        for s, content in (("s", _content(roles, "r")), ("ps", _content(roles, "p")))
    )
    label = roles.get("label")
    given = f"r.{_name(label)}" if label else "NULL"
    relabelled = [f"s.{_name(n)}" for n in reversed(manifest.get("rewritten", {}).get("label", []))]
    label = f"COALESCE({', '.join([*relabelled, f'{given}::VARCHAR'])})"
    join = ""
    if _content(roles, "r") or given != "NULL":
        join = """JOIN rows r ON r.shard = d.shard AND r.row = d.row
        LEFT JOIN rows p ON d.partner_source IS NULL
        AND p.row_id = d.partner AND p.copy = d.partner_copy
        LEFT JOIN scores ps ON ps.shard = p.shard AND ps.row = p.row"""
    return f"""CREATE VIEW why AS SELECT d.row_id, d.copy, d.action, d.repeat, d.weight, d.stage,
    d.reason, d.value, d.threshold, d.rules, d.partner, d.partner_copy, d.partner_source,
    d.evidence, d.similarity, d.parent, d.parent_copy, {scores} AS scores, {label} AS label,
    {given} AS given_label, {mine} AS text, {theirs} AS partner_text,
    {_quoted(manifest["recipe_digest"])} AS recipe,
    (SELECT run_id FROM runs WHERE runs.recipe = {_quoted(manifest["recipe_digest"])}
     ORDER BY started DESC LIMIT 1) AS run
    FROM decisions d JOIN scores s ON s.shard = d.shard AND s.row = d.row {join}"""


_CERTIFIED = (
    *(
        f"{share}.{name}"
        for share in ("precision", "recall")
        for name in ("estimate", "low", "high")
    ),
    *("precision.checked", "recall.compared", "confidence"),
)


def _certificates(manifest: dict[str, Any]) -> str:
    """A row for every stage that certifies its decisions."""
    rows = []
    for stage in manifest["stages"]:
        found = stage.get("report", {}).get("certificate")
        if found is not None:
            values = []
            for path in _CERTIFIED:
                value = found
                for key in path.split("."):
                    value = value[key]
                values.append("NULL" if value is None else repr(value))
            giants = len(found["giant_groups"])
            rows.append(f"({_quoted(stage['stage'])}, {', '.join(values)}, {giants})")
    names = [path.replace(".", "_") for path in _CERTIFIED]
    columns = ", ".join(f"{name}::DOUBLE AS {name}" for name in names)
    nothing = f"({', '.join(['NULL'] * (len(names) + 2))})"
    return (
        f"CREATE VIEW certificates AS SELECT stage::VARCHAR AS stage, {columns}, "
        f"giant_groups::BIGINT AS giant_groups FROM (VALUES {', '.join(rows) or nothing}) "
        f"t(stage, {', '.join(names)}, giant_groups){'' if rows else ' LIMIT 0'}"
    )


def _generated(workspace: Place, manifest: dict[str, Any]) -> str:
    """A row for every row that a stage made, with its parent and what the stage says of it."""
    head = "SELECT d.row_id, d.copy, d.stage, d.parent, d.parent_copy, d.value, d.threshold"
    files = [name for made in manifest.get("generated", {}).values() for name in made["notes"]]
    if not files:
        return f"CREATE VIEW generated AS {head} FROM decisions d LIMIT 0"
    notes = _parquet([str(workspace / name) for name in files], ", union_by_name = true")
    return f"""CREATE VIEW generated AS {head}, n.* EXCLUDE (shard, row) FROM decisions d
    JOIN shards s ON s.shard = d.shard JOIN {notes} n ON n.shard = s.digest AND n.row = d.row"""


_RUN_COLUMNS = {
    "run_id": "VARCHAR",
    "recipe": "VARCHAR",
    "started": "TIMESTAMP",
    "ended": "TIMESTAMP",
    "rows_in": "BIGINT",
    "kept": "BIGINT",
    "dropped": "BIGINT",
    "quarantined": "BIGINT",
    "generated": "BIGINT",
    "written": "BIGINT",
    "peak_memory": "BIGINT",
    "tamis": "VARCHAR",
}


def _runs(workspace: Place) -> str:
    with place_errors(workspace):
        # Not by a pattern: the workspace's own name may hold the signs of one.
        notes = [folder / "run.json" for folder in (workspace / "runs").iterdir()]
    files = sorted(str(note) for note in notes if kind_of(note) == "file")
    types = ", ".join(f"{name}: '{kind}'" for name, kind in _RUN_COLUMNS.items())
    listed = ", ".join(map(_quoted, map(_no_pattern, files)))
    return f"CREATE VIEW runs AS SELECT * FROM read_json([{listed}], columns = {{{types}}})"


def workspace_of(place: Place) -> Place:
    """The workspace itself, or the one beside a dataset's folder."""
    beside = place_of(f"{str(absolute(place)).rstrip('/')}.tamis")
    if kind_of(place / CATALOG) is None and kind_of(beside / CATALOG) is not None:
        return beside
    return place


def write_catalog(workspace: Place) -> Place:
    """Write ``catalog.duckdb`` aside and rename it into place."""
    path = workspace / CATALOG
    # Made elsewhere, because DuckDB reads some characters in a path as more than a name.
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / CATALOG
        with duckdb.connect(str(made)) as connection:
            _fill(connection, workspace)
        with whole_file(path) as temporary:
            shutil.copyfile(made, temporary)
    return path


def open_catalog(workspace: Place) -> duckdb.DuckDBPyConnection:
    """The same views in memory, where a query can do no harm to the catalog."""
    connection = duckdb.connect()
    _fill(connection, workspace)
    return connection


def query(
    workspace: Place, sql: str, limit: int | None = None
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows (at most `limit`) of one reading query over the views.

    Raises:
        UserError: for anything but a single query, and for what DuckDB finds wrong in it.
    """
    with open_catalog(workspace) as connection, _told_errors():
        _check_reads(connection, sql)
        answer = connection.execute(sql)
        names = [column[0] for column in answer.description or ()]
        return names, answer.fetchall() if limit is None else answer.fetchmany(limit)


def query_table(workspace: Place, sql: str) -> pa.Table:
    """The answer to one reading query over the views; errors as of `query`."""
    with open_catalog(workspace) as connection, _told_errors():
        _check_reads(connection, sql)
        return connection.sql(sql).to_arrow_table()


def views_of(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """By column, the view that holds it: signals and scores, and what the user's rows have."""
    found: dict[str, str] = {}
    for view in ("scores", "signals", "rows"):
        described = connection.execute(f"SELECT * FROM {view} LIMIT 0").description or ()
        for column in described:
            found.setdefault(column[0], view)
    return found


def stored_batches(
    connection: duckdb.DuckDBPyConnection, columns: Mapping[str, str], rows: int
) -> Iterator[pa.RecordBatch]:
    """Columns of all rows in no particular order, after ``shard``, ``row``, ``row_id``, ``copy``.

    Args:
        columns: name to the view that holds it, as in `views_of`.
        rows: about how many a batch has.
    """
    first, *others = dict.fromkeys(columns.values())
    joins = "".join(f" JOIN {view} USING (shard, row)" for view in others)
    named = ", ".join(f"{view}.{_name(name)}" for name, view in columns.items())
    keys = f"{first}.shard, {first}.row, {first}.row_id, {first}.copy"
    answer = connection.sql(f"SELECT {keys}, {named} FROM {first}{joins}")
    reader: pa.RecordBatchReader = answer.to_arrow_reader(rows)
    yield from reader


def figures_of(
    connection: duckdb.DuckDBPyConnection, view: str, columns: Sequence[str]
) -> list[list[Any]]:
    """For every score its name, how many rows have it, and minimum, mean, three quantiles (5 %,
    median, 95 %) and maximum of those."""
    found = []
    for column in columns:
        name = _name(column)
        values = connection.execute(
            f"SELECT count({name}), min({name}), avg({name}), "
            f"quantile_cont({name}, [.05, .5, .95]), max({name}) FROM {view} "
            f"WHERE NOT isnan({name}::DOUBLE)"
        ).fetchall()[0]
        found.append([column, *values[:3], *(values[3] or [None] * 3), values[4]])
    return found


def _check_reads(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Refuse anything but one query that only reads."""
    kinds = [statement.type for statement in connection.extract_statements(sql)]
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    if len(kinds) != 1 or kinds[0] not in allowed:
        raise UserError("give one SELECT", where="sql", mend="the catalog is read-only")


@contextmanager
def _told_errors() -> Iterator[None]:
    """What DuckDB finds wrong in a query, in one line."""
    try:
        yield
    except duckdb.Error as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            first,
            where="sql",
            mend="views: rows, scores, signals, decisions, generated, why, certificates, runs",
        ) from error
