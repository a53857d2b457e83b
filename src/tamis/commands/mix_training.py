"""Commands that train proxies: a corpus into tokens, and small runs of a design."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamis.commands.options import (
    AsJson,
    Format,
    Id,
    MaxQuarantine,
    Memory,
    Text,
    Workers,
    parameters,
)
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
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of the split and the sample.")
    ] = 0,
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


def train(
    tokens: Annotated[str, typer.Argument(metavar="TOKENS", help="Of `tamis mix tokenise`.")],
    design: Annotated[
        str, typer.Argument(metavar="DESIGN", help="Table with columns mix_*, or a mixture (JSON).")
    ],
    out: Annotated[str, typer.Argument(metavar="RUNS", help="Parquet file of the runs.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 500,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="A run for each (repeatable); 0 if not given.")
    ] = None,
    size: Annotated[str, typer.Option(help="tiny, small or 1m.")] = "tiny",
    rate: Annotated[
        float | None, typer.Option(help="Highest learning rate; 4e-3, for 1m 4e-4.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences a step.")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens a sequence.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(help="Further setting, as in layers=6 or warmup=0.1 (repeatable)."),
    ] = None,
    epochs: Annotated[float, typer.Option(help="How often a domain may be seen.")] = 4,
    curve: Annotated[int, typer.Option(help="Measure also every so many steps.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs beside each other; as many as cores if not.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="float32; bfloat16; auto: bfloat16 where the hardware has it."),
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Train a small model on every mixture of a design, and measure its loss on all domains."""
    from tamis.flows.proxy_runs import proxy_settings, read_design, train_design
    from tamis.scoring.hardware import device_for, precision_for
    from tamis.storage.errors import UserError

    if Path(design).resolve() == Path(out).resolve():
        raise UserError("the runs would take the design's place", where=out, mend="another name")
    given = {"rate": rate, "batch": batch, "context": context}
    shape: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    shape |= {"steps": steps, "epochs": epochs, "curve": curve, "device": device_for(device)}
    shape["precision"] = precision_for(precision, shape["device"])
    settings = [
        proxy_settings(size, **{**shape, **parameters(param or []), "seed": one})
        for one in seed or [0]
    ]
    found = train_design(
        tokens,
        read_design(design),
        out,
        settings,
        workers=workers,
        told=None if as_json else _tell_run,
    )
    losses = [name for name in found.columns if name.startswith("loss_")]
    if as_json:
        print(json.dumps({"runs": len(found), "losses": losses, "table": out}))
        return
    table(
        ("loss", "least", "mean", "most"),
        [
            [
                name,
                *(
                    f"{value:.4f}"
                    for value in (min(column), sum(column) / len(column), max(column))
                ),
            ]
            for name in losses
            for column in [found[name].to_list()]
        ],
    )
    say(f"runs     {out} ({len(found):,} rows)")
    say(f"try      tamis mix compare {out}")


def _tell_run(done: int, runs: int, rate: float, left: float) -> None:
    """A line a run, with rate and time left."""
    ahead = f", {left / 60:.1f} min left" if done < runs else ""
    print(f"tamis: run {done:,} of {runs:,}: {rate:,.0f} tokens/s{ahead}", file=sys.stderr)


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
