"""What a run would have kept under other rules, from what it stored.

The run is gone through again, stage by stage, on its sidecars. A stage whose input and parameters
are as they were takes its decisions from the store; the others decide again. A row that a looser
rule lets through to a scorer which has not seen it is *not evaluated*: it is counted, and later
stages do without it. Nothing is written to ledger or dataset.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import yaml

from tamis.flows.checks import check_columns
from tamis.flows.direct import open_run
from tamis.flows.earlier import stored_pairs
from tamis.flows.steps import (
    Decided,
    Run,
    decide,
    mark,
    refuse,
    score,
    select,
    step_of,
    table_of,
    use,
)
from tamis.recipe import Recipe, check_recipe
from tamis.scoring.evaluate import Evaluated, evaluate, located, rows_missing
from tamis.scoring.operator import RowScorer
from tamis.selectors.generator import Generator
from tamis.selectors.known_pairs import Known, KnownPairs
from tamis.selectors.marker import Marker
from tamis.selectors.selector import Selector
from tamis.selectors.table import Table, signal_key
from tamis.selectors.table_scorer import TableScorer, evaluate_table
from tamis.storage.catalog import WORKSPACE_MANIFEST
from tamis.storage.columns import Mask, Source
from tamis.storage.corpus import Progress
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import read_json
from tamis.storage.kernels import Int64s
from tamis.storage.ledger import Drops
from tamis.storage.places import Place, place_errors, shown
from tamis.storage.tasks import Runner

R = TypeVar("R")
#: Parameters by ``STAGE.PARAM``, or ``STAGE.PARAM.KEY`` inside a mapping.
Changes = Mapping[str, Any]


class _NotSeenError(Exception):
    """Rows of a table whose signal was not computed in the run."""


@dataclass(frozen=True)
class StoredTable(Table):
    """A table whose signals are those that a run stored.

    Attributes:
        seen: rows that the run had at this stage, and so has signals of.
    """

    seen: Mask = field(kw_only=True)

    def evaluated(self, operator: RowScorer) -> Evaluated:
        seen = self.signed.get(signal_key(operator, self.columns), self.seen)
        if (self.kept & ~seen).any():
            raise _NotSeenError
        where = (self.corpus, seen, self.columns, self.workspace, "signals")
        missing = rows_missing(located(operator, *where), seen)
        if missing:
            raise UserError(
                f"the signal {operator.operator} would have to be computed for {missing:,} rows",
                mend="--evaluate computes it; other parameters of the stage need no signal anew",
            )
        return evaluate(operator, *where, self.runner)


@dataclass
class Past:
    """A run that has ended, gone through again on what it stored.

    Attributes:
        run: as it was at its end.
        before: by stage, the rows it had before.
        columns: by stage, where the values of roles came from.
        known: by stage, similarities that were computed, then or since.
    """

    run: Run
    before: dict[str, Mask] = field(default_factory=dict)
    columns: dict[str, dict[str, Source]] = field(default_factory=dict)
    known: dict[str, KnownPairs] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    def decided(self, stage: str) -> Decided:
        """What the run decided at a stage."""
        return next(found for found in self.run.decided if found.stage == stage)

    def pairs(self, stage: Selector) -> KnownPairs | None:
        """Similarities that are known for a stage, if they still hold with its parameters."""
        old = next(s for s in self.recipe.stages if s.stage == stage.stage)
        parts = stage.similarity_parts()
        edges = self.decided(stage.stage).edges
        if parts is None or parts != old.similarity_parts() or edges is None:
            return None
        if stage.stage not in self.known:
            rows = self.run.rows
            self.known[stage.stage] = stored_pairs(edges, rows, np.ones(len(rows.id_hi), np.bool_))
        return self.known[stage.stage]


@dataclass
class Alternative:
    """The same run under other rules.

    Attributes:
        run: as it is at its end; rows not evaluated are not among those kept.
        waiting: by stage, positions of rows that it has not seen and would have to evaluate.
    """

    run: Run
    waiting: dict[str, Int64s]

    @property
    def not_evaluated(self) -> int:
        """Rows that a looser rule lets through, and that no later stage has seen."""
        return sum(map(len, self.waiting.values()))


def look_back(workspace: Place, runner: Runner, progress: Progress) -> Past:
    """Go through a workspace's last run again.

    Raises:
        UserError: if the corpus is not what it was.
    """
    place = workspace / WORKSPACE_MANIFEST
    with place_errors(place):
        manifest = read_json(place)
    told = {**manifest["recipe"], "output": None, "workspace": str(workspace)}
    before_stages = manifest["recipe"]["stages"]
    recipe = check_recipe({**told, "stages": [_unpinned(s) for s in before_stages]}, shown(place))
    run, _ = open_run(recipe, workspace, runner, progress)
    for stage, told_stage in zip(run.recipe.stages, before_stages, strict=True):
        if _digests(stage.model_dump(mode="json")) != _digests(told_stage):
            raise UserError(
                f"{stage.stage}: a model or reference has changed since the run",
                where=shown(workspace),
                mend="run it again",
            )
    before = [shard["digest"] for shard in manifest["shards"]]
    if before != [shard.digest for shard in run.corpus.shards]:
        raise UserError(
            "the corpus has changed since the run", where=recipe.corpus.path, mend="run it again"
        )
    past = Past(run)
    for stage in run.recipe.stages:
        past.before[stage.stage] = run.kept.copy()
        past.columns[stage.stage] = dict(run.columns)
        if isinstance(stage, Selector):
            select(run, stage)
        elif isinstance(stage, RowScorer | TableScorer):
            score(run, stage)
    if int(run.kept.sum()) != manifest["rows"]["kept"]:
        raise RunError(
            f"the run kept {manifest['rows']['kept']:,} rows, gone through again "
            f"{int(run.kept.sum()):,}: it was made by another version",
            where=shown(workspace),
            mend="run the recipe again",
        )
    return past


def _unpinned(part: Any) -> Any:
    """Parts of a recipe without the digests that a run found."""
    if isinstance(part, dict):
        return {key: _unpinned(value) for key, value in part.items() if key != "digest"}
    return [_unpinned(value) for value in part] if isinstance(part, list) else part


def _digests(part: Any) -> list[Any]:
    """The digests in parts of a recipe, in order."""
    if isinstance(part, dict):
        inner = [found for value in part.values() for found in _digests(value)]
        return [*inner, *([part["digest"]] if "digest" in part else [])]
    return [f for value in part for f in _digests(value)] if isinstance(part, list) else []


def parsed_changes(given: Sequence[str]) -> dict[str, Any]:
    """Changes given as ``STAGE.PARAM=VALUE``, the value as in YAML.

    Raises:
        UserError: if one is not of this form.

    Example:
        >>> parsed_changes(["near_dedup.threshold=0.7", "rules.keep.long=words > 5"])
        {'near_dedup.threshold': 0.7, 'rules.keep.long': 'words > 5'}
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or "." not in name:
            raise UserError(
                f"expected STAGE.PARAM=VALUE, found {text!r}",
                mend="as in near_dedup.threshold=0.7",
            )
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{name}: {value!r} is no YAML value") from error
    return found


def changed_recipe(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with parameters of its selectors and markers set anew.

    Raises:
        UserError: for a stage or parameter that is not there, or a value that does not fit.
    """
    told = recipe.model_dump(mode="json")
    for name, value in changes.items():
        part, key = _slot(recipe, told, name)
        part[key] = value
    return check_recipe(told, "what-if")


def value_of(recipe: Recipe, name: str) -> Any:
    """A selector's or marker's parameter, by ``STAGE.PARAM``; errors as in `changed_recipe`."""
    part, key = _slot(recipe, recipe.model_dump(mode="json"), name)
    return part[key]


def _slot(recipe: Recipe, told: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The mapping and the key in it that hold a parameter."""
    stage, *path = name.split(".")
    place = next((at for at, s in enumerate(recipe.stages) if s.stage == stage), None)
    if place is None:
        known = [s.stage for s in recipe.stages if isinstance(s, Selector | Marker)]
        raise UserError(
            f"{name}: the run has no stage {stage!r}",
            mend=f"stages that decide: {', '.join(known) or 'none'}",
        )
    here = recipe.stages[place]
    if not isinstance(here, Selector | Marker):
        raise UserError(
            f"{name}: {stage} is a {here.kind}, whose scores would have to be computed anew",
            mend="change the recipe and run it",
        )
    part: Any = told["stages"][place]
    for depth, key in enumerate(path):
        known = [k for k in part if k not in ("operator", "name")] if isinstance(part, dict) else []
        if key not in known:
            raise UserError(
                f"{name}: {'.'.join([stage, *path[:depth]])} has no {key!r}",
                mend=f"it has {', '.join(known)}" if known else "",
            )
        if depth < len(path) - 1:
            part = part[key]
    if not path:
        raise UserError(f"{name}: expected STAGE.PARAM")
    return part, path[-1]


def alternative(past: Past, changes: Changes, evaluate_more: bool = False) -> Alternative:
    """Decide again under other rules.

    Args:
        evaluate_more: compute scores and signals that are missing, in place of counting the rows
            as not evaluated. They are stored in the workspace like those of a run.

    Raises:
        UserError: see `changed_recipe`; and for a change that asks for another signal.
    """
    recipe = changed_recipe(past.recipe, changes)
    old = past.run
    check_columns(recipe, old.corpus.schema)
    run = replace(
        old,
        recipe=recipe,
        kept=~old.rows.unusable,
        columns={**recipe.corpus.roles.columns()},
        scores={},
        evaluated={},
        decided=[],
        marked=[],
    )
    found = Alternative(run, {})
    for stage in recipe.stages:
        if isinstance(stage, Selector):
            _decide_again(found, past, stage, evaluate_more)
        elif isinstance(stage, Generator):
            continue  # rows that a stage made are no part of the comparison
        elif evaluate_more:
            score(run, stage)
        elif isinstance(stage, TableScorer):
            _use(run, _score_again(found, past, stage))
        elif any(run.scores.get(n) is not past.run.scores.get(n) for n in stage.reads()):
            score(run, stage)  # of scores that are others now
        else:
            _use(run, _stored_scores(found, past, stage))
    return found


def _stored_scores(found: Alternative, past: Past, stage: RowScorer) -> Evaluated:
    """A row scorer's results as they are; rows that it has not seen wait."""
    roles = stage.used_roles()
    if any(found.run.columns[role] != past.columns[stage.stage][role] for role in roles):
        raise UserError(
            f"{stage.stage} reads a text that another stage would rewrite differently",
            mend="--evaluate computes it anew",
        )
    _wait(found, past, stage.stage)
    return past.run.evaluated[stage.stage]


def _score_again(found: Alternative, past: Past, stage: TableScorer) -> Evaluated:
    """A table scorer's results for other rows are others; stored if they were asked for before."""
    return _seen(
        found, past, stage.stage, lambda t: evaluate_table(stage, t, step_of(found.run, stage))
    )


def _decide_again(found: Alternative, past: Past, stage: Selector, evaluate_more: bool) -> None:
    run, old = found.run, past.decided(stage.stage)
    step = step_of(run, stage)
    if step == old.step:
        run.kept[old.drops.rows] = False
        run.decided.append(old)
        return
    if "certificate" in type(stage).model_fields:
        stage = stage.model_copy(update={"certificate": 0})
    pairs = past.pairs(stage)

    def again(table: Table) -> Drops:
        known = None if pairs is None else Known(pairs, table.positions)
        return decide(stage, replace(table, known=known))

    drops = again(table_of(run)) if evaluate_more else _seen(found, past, stage.stage, again)
    drops.edges = None
    run.kept[drops.rows] = False
    run.decided.append(Decided(stage.stage, stage.operator, drops, old.path, None, step))


def _seen(found: Alternative, past: Past, stage: str, work: Callable[[Table], R]) -> R:
    """Work on a table of stored signals; rows that have none wait, if the work asks for any."""

    def table() -> StoredTable:
        parts = vars(table_of(found.run))
        return StoredTable(**parts, seen=past.before[stage])

    try:
        return work(table())
    except _NotSeenError:
        _wait(found, past, stage)
        return work(table())


def _wait(found: Alternative, past: Past, stage: str) -> None:
    unseen = np.flatnonzero(found.run.kept & ~past.before[stage])
    if len(unseen):
        found.waiting[stage] = unseen
        found.run.kept[unseen] = False


def _use(run: Run, evaluated: Evaluated) -> None:
    use(run, evaluated)
    mark(run, evaluated)
    refuse(run, evaluated)
