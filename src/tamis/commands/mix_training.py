"""Commands that train proxies: a corpus into tokens, and small runs of a design."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tamis.commands.options import AsJson, Format, Id, MaxQuarantine, Memory, Text, Workers
from tamis.console import progress, say, table

if TYPE_CHECKING:
    from tamis.storage.token_shards import TokenShards


def tokenise(
    corpus: Annotated[str, typer.Argument(metavar="IN", help="File, folder, glob or URL.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder of the tokens.")],
    domain: Annotated[str, typer.Option(help="Column that holds the domain.")] = "domain",
    text: Text = "text",
    row_id: Id = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json; one is learnt if not given.")
    ] = None,
    vocabulary: Annotated[
        int, typer.Option(min=257, help="Tokens of a tokenizer that is learnt.")
    ] = 2048,
    end_of_text: Annotated[
        str | None, typer.Option(help="Token that ends a document; by its usual names if not.")
    ] = None,
    validation: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the documents to measure on.")
    ] = 0.05,
    only: Annotated[
        list[str] | None, typer.Option(help="Domain to take (repeatable); all if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the sample.")] = 0,
    format: Format = None,
    workspace: Annotated[
        str | None, typer.Option(help="Folder of what is not finished; OUT.tamis if not given.")
    ] = None,
    max_quarantine: MaxQuarantine = None,
    memory: Memory = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Tokenise a corpus by domain, with a part of every domain to measure losses on."""
    from tamis.commands.recipes import recipe_for, with_limits
    from tamis.flows.tokenise import tokenise as make_tokens

    roles: dict[str, str | None] = {"text": text, "domain": domain, "id": row_id}
    home = workspace or f"{out.rstrip('/')}.tamis"
    recipe = recipe_for(corpus, format, roles, [], None, home)
    with progress(as_json) as report:
        found = make_tokens(
            with_limits(recipe, memory, workers, max_quarantine),
            out,
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            validation=validation,
            seed=seed,
            only=only or (),
            end_of_text=end_of_text,
            progress=report,
        )
    if as_json:
        print(json.dumps(found.manifest.model_dump(mode="json")))
        return
    _tell_tokens(found)


def _tell_tokens(found: "TokenShards") -> None:
    rows = []
    for name, splits in found.manifest.domains.items():
        train, held = splits["train"], splits["validation"]
        each = f"{train.bytes / max(1, train.tokens - train.rows):.2f}"
        rows.append([name, *(f"{n:,}" for n in (train.rows, train.tokens, held.tokens)), each])
    table(("domain", "documents", "tokens to train", "to measure", "bytes a token"), rows)
    for reason, count in found.manifest.left_out.items():
        say(f"left out: {reason}: {count:,} rows")
    say(f"tokens   {found.folder}")
