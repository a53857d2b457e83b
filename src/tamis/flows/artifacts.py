"""What a flow run shows on its page: rows by fate, look-alikes, and where the dataset lies."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.settings.context import get_current_settings

from tamis.flows.direct import Result
from tamis.flows.look_alikes import look_alikes
from tamis.storage.dataset import has_repeats, marked_rows
from tamis.storage.places import absolute, shown

#: Pairs of near-duplicates that are shown.
PAIRS = 5
_HERE = ("localhost", "127.0.0.1", "::1")


def publish(result: Result) -> None:
    """Create the artifacts of a run that has ended."""
    create_table_artifact(key="rows", table=rows_table(result), description="Rows by their fate.")
    pairs = look_alikes(result.workspace, PAIRS)
    if pairs:
        create_markdown_artifact(
            key="look-alikes",
            markdown=pairs_text(pairs, with_text=_may_show_text(result)),
            description="Near-duplicates: what was dropped, and what was kept in its place.",
        )
    if result.output is not None:
        place = absolute(result.output)
        link = place.as_uri() if isinstance(place, Path) else shown(place)
        create_link_artifact(key="dataset", link=link, link_text=shown(place))


def rows_table(result: Result) -> list[dict[str, Any]]:
    """Rows in, dropped by reason, quarantined and kept, with their share of all."""
    rows = result.manifest["rows"]
    whole = max(1, rows["in"])
    counts = {
        "in": rows["in"],
        **{f"dropped: {reason}": count for reason, count in rows["dropped"].items()},
        "quarantined": rows["quarantined"],
        "kept": rows["kept"],
        **{f"of these {name}": count for name, count in marked_rows(rows).items()},
        **({"generated": rows["generated"]} if rows.get("generated") else {}),
        **({"written": rows["written"]} if has_repeats(rows) else {}),
    }
    return [
        {"": name, "rows": count, "share": f"{100 * count / whole:.1f} %"}
        for name, count in counts.items()
    ]


def pairs_text(pairs: list[dict[str, Any]], *, with_text: bool) -> str:
    """Pairs as Markdown; the texts are fenced, so that nothing in them is taken for markup."""
    parts = []
    for pair in pairs:
        parts.append(f"## {pair['similarity']:.2f} similar")
        for side in ("dropped", "kept"):
            row = pair[side]
            parts.append(f"**{side}** `{row['row_id']}`")
            if with_text:
                parts.append(_fenced(row["text"]))
    if not with_text:
        parts.append(
            "Texts are shown on a server of the same machine only, and not where a stage has "
            "rewritten them."
        )
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _may_show_text(result: Result) -> bool:
    """No text of the corpus goes to another machine, nor one that a stage may have masked."""
    host = urlsplit(get_current_settings().api.url or "").hostname
    return host in _HERE and not result.manifest["rewritten"]
