"""SQL expressions over columns, shut in: no file, no network, no setting, no second query.

An expression is parsed by DuckDB itself and walked before it runs. It runs in an in-memory
DuckDB of its own whose external access is off and whose configuration is locked, on Arrow
batches that are handed to it.
"""

import json
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa

from tamis.storage.errors import RunError, UserError

#: Seconds that one batch may take.
TIME_LIMIT = 60.0

_FORBIDDEN = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "STAR": "*",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "a position",
    "DEFAULT": "DEFAULT",
}
# Functions that make a value of any size from a small one: DuckDB's memory limit does not see it.
_UNBOUNDED = {
    "array_resize",
    "bar",
    "generate_series",
    "list_resize",
    "lpad",
    "range",
    "repeat",
    "row",  # a tuple: several expressions in the place of one
    "rpad",
}
_COMPARISONS = {
    "COMPARE_GREATERTHAN",
    "COMPARE_GREATERTHANOREQUALTO",
    "COMPARE_LESSTHAN",
    "COMPARE_LESSTHANOREQUALTO",
    "COMPARE_EQUAL",
    "COMPARE_NOTEQUAL",
}

Node = dict[str, Any]


@dataclass(frozen=True)
class Conjunct:
    """One of the conditions joined by AND; `column` and `threshold` where it compares the two."""

    sql: str
    column: str | None
    threshold: float | None


@dataclass(frozen=True)
class Expression:
    """A checked boolean expression."""

    text: str
    columns: frozenset[str]
    conjuncts: tuple[Conjunct, ...]


@cache
def _allowed_functions() -> frozenset[str]:
    with duckdb.connect() as connection:
        rows = connection.execute(
            "SELECT function_name FROM duckdb_functions() GROUP BY function_name HAVING "
            "bool_and(function_type = 'scalar' AND stability = 'CONSISTENT')"
        ).fetchall()
    return (
        frozenset(name for (name,) in rows if not name.startswith(("duckdb_", "pg_"))) - _UNBOUNDED
    )


def parse_expression(text: str) -> Expression:
    """Check an expression and take it apart.

    Raises:
        UserError: if it is not one plain, deterministic expression over columns.

    Example:
        >>> parse_expression("words >= 20 AND lang = 'en'").conjuncts[0].threshold
        20.0
    """
    with duckdb.connect() as connection:
        # The closing bracket on a line of its own keeps a comment from swallowing it.
        answer = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT (\n{text}\n)"])
        parsed: Node = json.loads(answer.fetchall()[0][0])
        if parsed["error"]:
            raise UserError(f"not an SQL expression: {parsed['error_message']}", where=repr(text))
        node = parsed["statements"][0]["node"]
        if len(parsed["statements"]) != 1 or not _is_single_expression(node):
            raise UserError("not a single expression", where=repr(text))
        root = node["select_list"][0]
        columns: set[str] = set()
        _walk(root, text, columns)
        conjuncts = tuple(_conjunct(connection, part, parsed) for part in _parts(root))
    return Expression(text, frozenset(columns), conjuncts)


def _is_single_expression(node: Node) -> bool:
    empty = ("where_clause", "having", "sample", "qualify")
    return (
        node["type"] == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and all(node[key] is None for key in empty)
        and not node["modifiers"]
        and not node["group_expressions"]
        and not node["cte_map"]["map"]
    )


def _walk(node: Any, text: str, columns: set[str]) -> None:
    if isinstance(node, list):
        for item in node:
            _walk(item, text, columns)
        return
    if not isinstance(node, dict):
        return
    kind = node.get("class")
    if kind in _FORBIDDEN:
        raise UserError(f"{_FORBIDDEN[kind]} is not allowed in an expression", where=repr(text))
    if kind == "COLUMN_REF":
        columns.add(str(node["column_names"][0]))
    if kind == "FUNCTION" and node["function_name"].lower() not in _allowed_functions():
        raise UserError(
            f"function {node['function_name']!r} is not allowed in an expression",
            where=repr(text),
            mend="use scalar functions whose result depends on their arguments only",
        )
    for value in node.values():
        _walk(value, text, columns)


def _parts(node: Node) -> list[Node]:
    if node.get("type") == "CONJUNCTION_AND":
        return [part for child in node["children"] for part in _parts(child)]
    return [node]


def _conjunct(connection: duckdb.DuckDBPyConnection, part: Node, parsed: Node) -> Conjunct:
    statement = json.loads(json.dumps(parsed))
    statement["statements"][0]["node"]["select_list"] = [part]
    sql = connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(statement)])
    text = str(sql.fetchall()[0][0]).removeprefix("SELECT ").strip()
    column = threshold = None
    if part.get("type") in _COMPARISONS:
        sides = [part["left"], part["right"]]
        references = [s["column_names"] for s in sides if s["class"] == "COLUMN_REF"]
        names = [path[0] for path in references if len(path) == 1]
        values = [_number(s) for s in sides if _number(s) is not None]
        if len(names) == len(values) == 1:
            column, threshold = names[0], values[0]
    return Conjunct(text, column, threshold)


def _number(node: Node) -> float | None:
    if node["class"] == "FUNCTION" and node["function_name"] == "-" and len(node["arguments"]) == 1:
        inner = _number(node["arguments"][0]["expression"])
        return None if inner is None else -inner
    if node["class"] != "CONSTANT":
        return None
    try:
        return float(node["literal"]["text"]) if node["literal"]["kind"] != "STRING" else None
    except (KeyError, TypeError, ValueError):
        return None


class Sandbox:
    """An in-memory DuckDB that reaches nothing outside itself."""

    def __init__(self, memory: str = "1GB", time_limit: float = TIME_LIMIT) -> None:
        self._time_limit = time_limit
        self._connection = duckdb.connect(
            config={
                "memory_limit": memory,
                "temp_directory": "",
                "threads": 1,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )
        self._connection.execute("SET enable_external_access = false")
        self._connection.execute("SET lock_configuration = true")

    def close(self) -> None:
        self._connection.close()

    def evaluate(self, expressions: list[str], batch: pa.RecordBatch) -> pa.Table:
        """One column per expression (named c0, c1, …) for every row of a batch.

        Raises:
            UserError: if an expression does not fit the columns.
            RunError: if it takes longer than the limit or fails on a value.
        """
        selected = ", ".join(f"({text}) AS c{i}" for i, text in enumerate(expressions))
        self._connection.register("batch", pa.Table.from_batches([batch]))
        timer = threading.Timer(self._time_limit, self._connection.interrupt)
        timer.start()
        try:
            return self._connection.sql(f"SELECT {selected} FROM batch").to_arrow_table()
        except (duckdb.BinderException, duckdb.CatalogException) as error:
            raise UserError(_first_line(error), mend="check names and types") from error
        except duckdb.InterruptException as error:
            raise RunError(f"an expression took longer than {self._time_limit:g} s") from error
        except duckdb.Error as error:
            raise RunError(
                f"an expression failed on a value: {_first_line(error)}",
                mend="use TRY_CAST or TRY(...) for values that do not fit",
            ) from error
        finally:
            timer.cancel()
            self._connection.unregister("batch")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
