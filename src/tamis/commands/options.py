"""Options that several commands have, and how their values are read."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tamis.storage.places import Place

Text = Annotated[str, typer.Option("--text", help="Column that holds the text.")]
Label = Annotated[str, typer.Option("--label", help="Column that holds the class.")]
Id = Annotated[str | None, typer.Option("--id", help="Column that identifies a row.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="parquet, jsonl, csv, arrow, datasets, python or python-pairs; "
        "by file endings if not given.",
    ),
]
Workspace = Annotated[
    str | None,
    typer.Option("--workspace", help="Folder of ledger, catalog, scores; OUT.tamis if not given."),
]
Memory = Annotated[
    str | None, typer.Option("--memory", help="Peak memory allowed, such as 8GB; refused early.")
]
MaxQuarantine = Annotated[
    float | None,
    typer.Option(
        "--max-quarantine",
        min=0,
        max=1,
        help="Share of rows that may be unusable before the run stops; 0.01 if not given.",
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Threads; all cores if not.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, no table.")]
Looked = Annotated[
    str, typer.Option("--workspace", "-w", help="Workspace of a run, or its dataset's folder.")
]


def named(value: str, option: str, parts: int) -> list[str]:
    from tamis.storage.errors import UserError

    found = value.rsplit(":", parts - 1)
    if len(found) != parts:
        raise UserError(f"{option}: expected {parts} parts joined by colons, found {value!r}")
    return found


def amount_of(value: str, option: str) -> dict[str, float | int]:
    from tamis.storage.errors import UserError

    try:
        if value.endswith("%"):
            return {"fraction": float(value[:-1]) / 100}
        return {"rows": int(value)}
    except ValueError as error:
        raise UserError(
            f"{option}: expected rows or a share such as 10%, found {value!r}"
        ) from error


def pair(given: str, option: str) -> tuple[str, str]:
    """What stands before and after an equals sign."""
    from tamis.storage.errors import UserError

    name, equals, value = given.partition("=")
    if not equals:
        raise UserError(f"{option}: expected name=value, found {given!r}")
    return name, value


def parameters(given: list[str]) -> dict[str, Any]:
    """Parameters given as ``name=value``, the value as in YAML."""
    import yaml

    from tamis.storage.errors import UserError

    found = {}
    for part in given:
        name, value = pair(part, "--param")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--param: expected name=value, found {part!r}") from error
    return found


def parameters_of(name: str, given: list[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Parameters of an operator, and by operator those given as ``operator.name=value``."""
    own: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {}
    for key, value in parameters(given).items():
        operator, dot, parameter = key.partition(".")
        if dot and operator != name:
            others.setdefault(operator, {})[parameter] = value
        else:
            own[parameter or key] = value
    return own, others


def workspace_at(path: str) -> "Place":
    """The workspace itself, or the one beside a dataset's folder."""
    from tamis.storage.catalog import workspace_of
    from tamis.storage.places import place_of

    return workspace_of(place_of(path))
