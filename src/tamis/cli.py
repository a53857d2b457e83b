"""The program `tamis`: its commands put together, and how a command ends."""

import sys
from typing import Annotated, NoReturn

import typer

from tamis import __version__
from tamis.commands import (
    dynamics,
    looking,
    mix_designs,
    mix_draws,
    mix_training,
    mix_weights,
    mixing,
    running,
    scoring,
)

app = typer.Typer(
    name="tamis",
    help="Decide what a model is trained on: deduplicate, score, select; know why a row was "
    "dropped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(help="About recipes.", no_args_is_help=True)
app.add_typer(recipe_app, name="recipe")
for command in (
    running.run,
    running.schedule,
    running.plan,
    running.dedup,
    scoring.score,
    dynamics.dynamics,
    dynamics.import_dynamics,
    running.embed,
    running.select,
    looking.calibrate,
    looking.why,
    looking.check,
    looking.what_if,
    looking.sql,
    looking.operators,
    running.demo,
):
    app.command()(command)
mix_app = typer.Typer(help="How much of what: proportions from small runs.", no_args_is_help=True)
app.add_typer(mix_app, name="mix")
mix_app.command()(mixing.fit)
mix_app.command()(mixing.compare)
mix_app.command()(mixing.optimise)
mix_app.command()(mixing.laws)
mix_app.command()(mix_designs.design)
mix_app.command()(mix_training.tokenise)
mix_app.command()(mix_training.train)
mix_app.add_typer(mix_weights.weights_app, name="weights")
mix_app.command()(mix_draws.apply)
mix_app.command()(mix_draws.count)
recipe_app.command("schema")(looking.recipe_schema)
recipe_app.command("check")(looking.recipe_check)

_STOPPED = "stopped; run the same command again to go on from here"
#: What typer makes of an interrupt before it comes to us.
_INTERRUPTED = 130


def main() -> None:
    """Run a command; errors become one line and an exit code (1 failed, 2 yours to mend)."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        sys.argv.remove("--debug")
    try:
        code = app(standalone_mode=False) or 0
        said = ""
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        said, code = _STOPPED, 1
    except Exception as error:
        if debug:
            raise
        said, code = _outcome(error)
    # Only here, where nothing holds on to the error any more: what its frames hold would still be
    # there when the interpreter ends, of which DuckDB's binding complains at length.
    _end(said, code)


def _outcome(error: Exception) -> tuple[str, int]:
    """The line that an error is told in, and the exit code."""
    # An interrupt while threads are waited for may come out as the lock's own error.
    if isinstance(error.__context__, KeyboardInterrupt):
        return _STOPPED, 1
    code = getattr(error, "exit_code", None)
    if code is None:
        return f"{type(error).__name__}: {error} (--debug shows where)", 1
    # Says nothing where help has been printed already.
    return str(getattr(error, "format_message", error.__str__)()), int(code)


def _end(text: str, code: int) -> NoReturn:
    if text:
        print(f"tamis: {' '.join(text.split())}", file=sys.stderr)
    raise SystemExit(code)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


if __name__ == "__main__":
    main()
