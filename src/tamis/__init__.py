"""tamis: decide what a model is trained on, and know why each row was dropped.

Example:
    >>> import polars, tamis
    >>> frame = polars.DataFrame({"body": ["a line\\na line", "one two three"]})
    >>> tamis.score("text_stats", frame, text="body")["repeated_line_share"].to_list()
    [0.5, 0.0]
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "DynamicsCallback",
    "DynamicsRecorder",
    "Recipe",
    "RunError",
    "UserError",
    "__version__",
    "check",
    "dynamics",
    "load_recipe",
    "record_partial_fit",
    "record_trainer",
    "run",
    "score",
    "sql",
    "threshold_samples",
    "what_if",
]

if TYPE_CHECKING:
    from pathlib import Path

    from polars import DataFrame

    from tamis.flows.differences import Difference
    from tamis.flows.direct import Result
    from tamis.recipe import Recipe, load_recipe
    from tamis.scoring.recorder import DynamicsRecorder
    from tamis.scoring.recorder_lightning import DynamicsCallback
    from tamis.scoring.recorder_sklearn import record_partial_fit
    from tamis.scoring.recorder_transformers import record_trainer
    from tamis.scoring.threshold_samples import threshold_samples
    from tamis.storage.errors import RunError, UserError

_LAZY = {
    "DynamicsCallback": "tamis.scoring.recorder_lightning",
    "DynamicsRecorder": "tamis.scoring.recorder",
    "Recipe": "tamis.recipe",
    "load_recipe": "tamis.recipe",
    "record_partial_fit": "tamis.scoring.recorder_sklearn",
    "record_trainer": "tamis.scoring.recorder_transformers",
    "threshold_samples": "tamis.scoring.threshold_samples",
    "RunError": "tamis.storage.errors",
    "UserError": "tamis.storage.errors",
}


def __getattr__(name: str) -> Any:
    # `import tamis` is part of every command's start-up, `--help` included.
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tamis' has no attribute {name!r}")


def run(recipe: "Recipe | str | Path | dict[str, Any]") -> "Result":
    """Run a recipe: a path, a `Recipe`, or the same as plain data.

    Returns:
        The result: ``manifest``, and ``kept``, ``dropped``, ``decisions`` as polars LazyFrames.

    Raises:
        UserError: if the recipe or the corpus must be mended.
        RunError: if the run failed.
    """
    from tamis.flows.start import start
    from tamis.recipe import CLUSTERS, Recipe, check_recipe, load_recipe

    if isinstance(recipe, dict):
        recipe = check_recipe(recipe)
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    return start(recipe, prefect=recipe.runner in CLUSTERS)


def score(operator: str, frame: Any, *, params: dict[str, Any] | None = None, **roles: str) -> Any:
    """Compute a row scorer on a frame in memory, or on the columns that a run has stored.

    Args:
        operator: its registered name.
        frame: a polars, pandas or Arrow table; or a run's result, workspace or dataset, for a
            scorer that reads columns and no text.
        params: parameters of the operator, if not its defaults.
        roles: column of every role the operator reads, as in ``text="body"``; a role that is
            also a column's name need not be given.

    Returns:
        A polars DataFrame with a row per row and the operator's score columns; for a run also
        ``row_id`` and ``copy``, with a row for every row of its corpus.

    Raises:
        UserError: for an unknown operator, a column or a role's column that is not there, or nulls
            in a role's.

    Example:
        >>> import polars, tamis
        >>> frame = polars.DataFrame({"policy_logp": [-3.5], "reference_logp": [-4.75]})
        >>> tamis.score("implicit_reward", frame)["implicit_reward"].to_list()
        [0.125]
    """
    from tamis.flows.in_memory import score_frame, score_stored

    place = _run_place(frame)
    if place is not None:
        return score_stored(operator, place, params or {})
    return score_frame(operator, frame, params or {}, roles)


def sql(run: "Result | str | Path", statement: str) -> "DataFrame":
    """Query what a run left: the views of ``tamis sql``.

    Args:
        run: a result, or the workspace or dataset of a run.
        statement: one SELECT over the views rows, scores, signals, decisions, generated, why,
            certificates and runs.

    Returns:
        A polars DataFrame.

    Raises:
        UserError: for anything but one SELECT, and for what DuckDB finds wrong in it.
    """
    import polars

    from tamis.storage.catalog import query_table

    found = polars.from_arrow(query_table(_run_place(run), statement))
    assert isinstance(found, polars.DataFrame)
    return found


def _run_place(run: Any) -> Any:
    """The workspace of a run, or None for what is none: a frame."""
    from pathlib import Path

    from tamis.flows.direct import Result
    from tamis.storage.catalog import workspace_of
    from tamis.storage.places import place_of

    if isinstance(run, Result):
        return run.workspace
    return workspace_of(place_of(run)) if isinstance(run, str | Path) else None


def check(
    texts: Any,
    against: "str | Path | Result",
    *,
    text: str = "text",
    threshold: float | None = None,
    workspace: "str | Path | None" = None,
) -> "DataFrame":
    """Tell for texts whether a history holds them already, in nearly the same words.

    Args:
        texts: a string, a list of strings, or a polars, pandas or Arrow table.
        against: a run's result, workspace or dataset; or a corpus, whose signatures are then kept
            in ``CORPUS.tamis``.
        text: column of the table, and of the corpus.
        threshold: exact Jaccard similarity of shingles from which a text is known; the run's own.
        workspace: where the signatures of a corpus are kept instead.

    Returns:
        A polars DataFrame with a row for every text: ``new``; of the row that it resembles most
        ``row_id``, ``copy``, ``similarity`` (exact), ``excerpt``; and what the run decided on that
        row: ``action``, ``stage``, ``reason``, ``partner``, ``partner_similarity``.

    Raises:
        UserError: if there is no such history, or it cannot be compared with.
    """
    from tamis.flows.check import as_texts, check_texts

    place = getattr(against, "workspace", None) or against
    where = None if workspace is None else str(workspace)
    return check_texts(
        as_texts(texts, text), str(place), threshold=threshold, text=text, workspace=where
    )[0]


def dynamics(
    folder: "str | Path | list[str | Path]", *, skip_epochs: int = 0, until: int | None = None
) -> "DataFrame":
    """Score rows by the records of their training, without a corpus: ``tamis dynamics``.

    Args:
        folder: of training records; several are runs of one training set.
        skip_epochs: epochs at the beginning that do not count.
        until: epochs of a run, those skipped included, after which none counts.

    Returns:
        A polars DataFrame by ascending ``row_id``: ``aum``, ``confidence``, ``variability``,
        ``correctness``, ``forgetting``, ``el2n``, ``loss`` (mean), ``last_loss``, as
        `tamis.scoring.training_dynamics` defines them, means over the runs that have the row as an
        ordinary one; null where there is none. ``updates`` and ``epochs`` count those of all runs.

    Raises:
        UserError: if there are no records, or a file is damaged or not in the format.

    Example:
        >>> import tempfile, polars, tamis
        >>> from tamis.scoring.logged_logits import import_logits
        >>> home = tempfile.TemporaryDirectory()
        >>> logged = {"row_id": [7], "epoch": [0], "logits": [[2.0, 1.0, 0.0]], "label": [0]}
        >>> polars.DataFrame(logged).write_parquet(f"{home.name}/logged.parquet")
        >>> made = import_logits(f"{home.name}/logged.parquet", f"{home.name}/records")
        >>> tamis.dynamics(f"{home.name}/records")["aum"].to_list()
        [1.0]
    """
    from tamis.flows.dynamics import chosen, scores_of

    folders = [str(one) for one in folder] if isinstance(folder, list) else str(folder)
    return scores_of(chosen(folders, skip_epochs, until))[0]


def what_if(
    run: "Result | str | Path",
    changes: dict[str, Any] | None = None,
    *,
    move: str | None = None,
    target_rows: int | None = None,
    target_tokens: int | None = None,
    target_characters: int | None = None,
    evaluate: bool = False,
) -> "Difference":
    """Tell what a run would have kept under other rules; nothing is run or written anew.

    Args:
        run: a result, or the workspace of a run.
        changes: parameters of its selectors, as in ``{"near_dedup.threshold": 0.7}``.
        move: parameter that is moved until one of the targets is met.
        evaluate: compute scores and signals that are missing, in place of leaving rows out.

    Returns:
        ``before``, ``after``, ``lost``, ``gained``, ``domains``, ``not_evaluated``, and
        ``changed``, a polars DataFrame of the rows whose fate would change.

    Raises:
        UserError: for a stage, parameter or value that does not fit, or a corpus that has changed.
    """
    from tamis.flows.targets import Target, answer

    wanted = {"rows": target_rows, "tokens": target_tokens, "characters": target_characters}
    target = Target.given(move, wanted)
    return answer(_run_place(run), changes or {}, target=target, evaluate_more=evaluate)
