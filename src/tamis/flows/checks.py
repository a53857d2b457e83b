"""What can be said before any work: whether the recipe fits the corpus, and the memory it needs."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from tamis.recipe import CONTENT_ROLES, Recipe
from tamis.scoring.likelihood import AtLevel
from tamis.scoring.operator import (
    REGISTRY,
    Operator,
    RowScorer,
    Scorer,
    Signal,
    operator_class,
)
from tamis.selectors.generator import Generator
from tamis.selectors.labels import is_label
from tamis.selectors.marker import Marker
from tamis.selectors.mixture_draw import MixtureDraw
from tamis.selectors.selector import TableOperator
from tamis.selectors.suspicion import BySuspicion
from tamis.selectors.table import is_number
from tamis.selectors.table_scorer import TableScorer
from tamis.selectors.vectors import is_vector
from tamis.storage.corpus import Corpus
from tamis.storage.errors import UserError
from tamis.storage.messages import can_hold_id

#: Resident bytes of the interpreter with what the core imports, and of a worker's batches:
#: measured on the benchmark corpus, rounded up.
BASE_BYTES = 450 << 20
WORKER_BYTES = 300 << 20
#: Numbers that a vector is taken to have where its column holds lists of any length.
LIST_NUMBERS = 1024
#: Of every row that a costly operator computed before, while `reuse.keep_known` sorts them. Rows of
#: other corpora in the same workspace come on top.
KNOWN_BYTES = 72
#: Of every row, while a stage sees the table: id, copy, marks, place, and what dropped it.
ROW_BYTES = 70
#: Of every row that markers act on, with what each of some detectors voted.
MARK_BYTES = 120
#: Resident bytes of a further process with the same imports and kernels, measured alike.
PROCESS_BYTES = 320 << 20


def check_columns(recipe: Recipe, schema: pa.Schema) -> None:
    """Hold the recipe against the corpus before any work.

    Raises:
        UserError: for a column that is not there, has the wrong type or two meanings, and for a
            score that no earlier stage gives.
    """
    where = "recipe"
    for role, column in recipe.corpus.roles.columns().items():
        if column not in schema.names:
            raise UserError(
                f"corpus.roles.{role}: no column {column!r}",
                where=where,
                mend=f"the corpus has {', '.join(schema.names)}",
            )
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if role == "text" and not _is_text(kind):
            raise UserError(
                f"corpus.roles.text: expected a string column, found {column!r} of type {kind}",
                where=where,
            )
        if role in CONTENT_ROLES and not _is_text(kind) and not _is_chat(kind):
            raise UserError(
                f"corpus.roles.{role}: expected strings or lists of messages (`role` and "
                f"`content`), found {column!r} of type {kind}",
                where=where,
            )
        if role == "label" and not is_label(kind):
            raise UserError(
                f"corpus.roles.label: expected one class a row, as text, integer or boolean; found "
                f"{column!r} of type {kind}",
                where=where,
                mend="a row of several labels is not taken: make a row of each",
            )
    if recipe.corpus.roles.domain is not None:
        _check_plain(schema, recipe.corpus.roles.domain, "corpus.roles.domain")
    identity = [recipe.corpus.roles.id] if recipe.corpus.roles.id else recipe.corpus.identity
    for column in identity or ():
        if column not in schema.names:
            raise UserError(f"corpus.identity: no column {column!r}", where=where)
        if pa.types.is_floating(schema.field(column).type) and recipe.corpus.roles.id:
            raise UserError(
                f"corpus.roles.id: expected text or integers, found {column!r} of type "
                f"{schema.field(column).type}, in which different large ids may be one number",
                where=where,
                mend="store the ids as text",
            )
    known = set(schema.names)
    kinds = dict(zip(schema.names, schema.types, strict=True))
    embedded: set[str] = set()
    givers: dict[str, Scorer] = {}
    for index, stage in enumerate(recipe.stages):
        for name in sorted(stage.reads() - known):
            raise UserError(
                f"stages[{index}] ({stage.stage}) reads {name!r}, which is neither a column "
                "nor a score of an earlier stage",
                where=where,
                mend=_who_gives(name) or f"known here: {', '.join(sorted(known))}",
            )
        for name in sorted(stage.numbers() & set(schema.names)):
            if not is_number(schema.field(name).type):
                raise UserError(
                    f"stages[{index}] ({stage.stage}): expected a number or a time, found "
                    f"{name!r} of type {schema.field(name).type}",
                    where=where,
                )
        if isinstance(stage, AtLevel):
            stage.check_levels(givers.get(stage.list_column))
        if isinstance(stage, BySuspicion):
            _check_judgement(stage, givers.get(stage.by), f"stages[{index}] ({stage.stage})")
        if isinstance(stage, TableOperator):
            for name in sorted(stage.groups_by() & set(schema.names)):
                _check_plain(schema, name, f"stages[{index}] ({stage.stage})")
            for name in sorted(stage.vectors()):
                if not is_vector(kinds[name]):
                    raise UserError(
                        f"stages[{index}] ({stage.stage}): expected a list of numbers, found "
                        f"{name!r} of type {kinds[name]}",
                        where=where,
                        mend="name a column of embeddings, or put `- operator: embedding` before",
                    )
            for name in sorted(stage.embeds() - embedded):
                raise UserError(
                    f"stages[{index}] ({stage.stage}): the stage that embeds the rows also embeds "
                    f"its keywords, and no stage makes {name!r}",
                    where=where,
                    mend="put `- operator: embedding` before it",
                )
        if isinstance(stage, Generator):
            markers = [s.stage for s in recipe.stages if isinstance(s, Marker)]
            if markers:
                raise UserError(
                    f"stages[{index}] ({stage.stage}) makes rows, and {markers[0]} marks rows of "
                    "the corpus, which new ones are not",
                    where=where,
                    mend="mark labels and make rows in two runs",
                )
            stage.source({s.stage: s for s in recipe.stages[:index]})
            _check_generated(recipe, schema)
        if isinstance(stage, Scorer):
            for name in stage.fields().names:
                if name in known:
                    raise UserError(
                        f"stages[{index}] ({stage.stage}) gives the score {name!r}, a name that "
                        "is taken already",
                        where=where,
                        mend="rename the column of the corpus or leave out one of the two",
                    )
                known.add(name)
                givers[name] = stage
                kinds[name] = stage.fields().field(name).type
                if isinstance(stage, RowScorer):
                    embedded.add(name)
    for column, name in (recipe.output.added if recipe.output is not None else {}).items():
        if name in schema.names or name not in known:
            raise UserError(
                f"output.add: {name!r} is no score of this recipe",
                where=where,
                mend=_who_gives(name) or f"scores: {', '.join(sorted(known - set(schema.names)))}",
            )
        if column in schema.names:
            raise UserError(
                f"output.add: the corpus has a column {column!r} already",
                where=where,
                mend="give the score another name, as in `add: {margin_of_policy: margin}`",
            )
    _check_marked(recipe, schema)
    _check_drawn(recipe)


def _check_drawn(recipe: Recipe) -> None:
    """Whether what a mixture draws is what the dataset holds."""
    for index, stage in enumerate(recipe.stages[:-1]):
        if isinstance(stage, MixtureDraw):
            after = recipe.stages[index + 1].stage
            raise UserError(
                f"stages[{index}] ({stage.stage}) draws the dataset, and {after} comes after it",
                where="recipe",
                mend="put it last: what is drawn has to add up",
            )


def _check_judgement(stage: BySuspicion, giver: Scorer | None, here: str) -> None:
    """Whether a score says how probably labels are wrong; a column of the corpus is believed."""
    if giver is None:
        return
    judgement = giver.judges().get(stage.by)
    if judgement is None:
        raise UserError(
            f"{here} acts by the probability that a label is wrong, and {stage.by!r} of "
            f"{giver.stage} is none",
            where="recipe",
            mend="make one of it with `label_consensus` or `mixture_posterior`, and name that",
        )
    if judgement == "order" and stage.needs_probability:
        raise UserError(
            f"{here} acts by the probability that a label is wrong, and {stage.by!r} of "
            f"{giver.stage} only tells which labels are more suspicious than others",
            where="recipe",
            mend="name a probability (of `label_consensus` with `combine: model`), or drop by "
            "order: `label_errors` with `rows` or `fraction`",
        )


def _check_marked(recipe: Recipe, schema: pa.Schema) -> None:
    """Whether the columns that markers add to the dataset have names of their own."""
    weights: set[str] = set()
    added = recipe.output.added if recipe.output is not None else {}
    for index, stage in enumerate(recipe.stages):
        if not isinstance(stage, Marker):
            continue
        here = f"stages[{index}] ({stage.stage})"
        columns = (
            ("given", stage.given_as()),
            ("column", stage.weight_as()),
            ("column", stage.phase_as()),
        )
        for parameter, name in columns:
            if name is not None and (name in schema.names or name in added):
                raise UserError(
                    f"{here} adds the column {name!r} to the dataset, a name that is taken already",
                    where="recipe",
                    mend=f"give the stage another, as in `{parameter}: {name}_2`",
                )
        weight = stage.weight_as()
        weights |= set() if weight is None else {weight}
        if len(weights) > 1:
            raise UserError(
                f"{here}: the weights of all stages are one column of the dataset, which is called "
                f"{' and '.join(sorted(weights))}",
                where="recipe",
                mend="give the stages the same `column`",
            )
    markers = [stage for stage in recipe.stages if isinstance(stage, Marker)]
    given, phases = {m.given_as() for m in markers}, {m.phase_as() for m in markers}
    several = ((given & weights) | (given & phases) | (phases & weights)) - {None}
    if several:
        raise UserError(
            f"labels, weights and phases cannot share the column {several.pop()!r} of the dataset",
            where="recipe",
            mend="give one of the stages another name for its column",
        )


def _check_generated(recipe: Recipe, schema: pa.Schema) -> None:
    """Whether rows of this corpus can be made, and scored for the dataset."""
    column = recipe.corpus.roles.id
    if column is not None and not can_hold_id(schema.field(column).type):
        raise UserError(
            f"corpus.roles.id: rows are made, and {column!r} of type {schema.field(column).type} "
            "cannot hold ids for them",
            where="recipe",
            mend="store the ids as text or as 64-bit integers",
        )
    added = set(recipe.output.added.values()) if recipe.output is not None else set()
    for stage in recipe.stages:
        if isinstance(stage, TableScorer) and added & set(stage.fields().names):
            raise UserError(
                f"output.add: {stage.stage} scores the rows of the corpus together, and rows are "
                "made that are not among them",
                where="recipe",
                mend="leave out its scores, or make and score rows in two runs",
            )


def _check_plain(schema: pa.Schema, name: str, where: str) -> None:
    if pa.types.is_nested(schema.field(name).type):
        raise UserError(
            f"{where}: expected plain values, found {name!r} of type {schema.field(name).type}",
            where="recipe",
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_chat(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    message = kind.value_type
    if not pa.types.is_struct(message) or not {"role", "content"} <= set(message.names):
        return False
    return all(_is_text(message.field(name).type) for name in ("role", "content"))


def _who_gives(name: str) -> str:
    operator = _giver(name)
    return "" if operator is None else f"put `- operator: {operator}` before it"


def _giver(name: str, params: Mapping[str, dict[str, Any]] | None = None) -> str | None:
    """The operator that by itself, or with these parameters by operator, gives a score."""
    given = params or {}
    # What is made to be read comes before what is made for other operators.
    for operator, cls in sorted(REGISTRY.items(), key=lambda entry: issubclass(entry[1], Signal)):
        if issubclass(cls, Scorer) and name in score_names(cls, given.get(operator)):
            return operator
    return None


def score_names(cls: type[Scorer], params: Mapping[str, Any] | None = None) -> list[str]:
    """Scores that a scorer gives by itself, or with some parameters: none if it needs others or a
    model that is not there.
    """
    try:
        return list(cls(**(params or {})).fields().names)
    except (ValidationError, UserError):
        return []


def givers(
    stages: Sequence[Operator],
    columns: Sequence[str],
    params: Mapping[str, dict[str, Any]],
    wanted: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The stages to run before some others, so that all they read is there.

    Args:
        columns: of the corpus.
        params: by operator, those of the stages that are found, if not its defaults.
        wanted: scores that are read beside.

    Returns:
        Stages as plain data, in order: operators that by themselves give what is read and neither
        a stage before nor the corpus gives, and what those in turn need.
    """
    there = set(columns)
    found: list[dict[str, Any]] = []

    def need(names: Collection[str]) -> None:
        for name in sorted(set(names) - there):
            operator = _giver(name, params)
            if operator is not None and name not in there:
                giver = operator_class(operator)(**params.get(operator, {}))
                add(giver)
                found.append({**params.get(operator, {}), "operator": operator})

    def add(stage: Operator) -> None:
        need(stage.reads())
        there.update(_gives(stage))

    for stage in stages:
        add(stage)
    need(wanted)
    return found


def _gives(stage: Operator) -> list[str]:
    return list(stage.fields().names) if isinstance(stage, Scorer) else []


def vector_lengths(recipe: Recipe, schema: pa.Schema) -> dict[str, int]:
    """Numbers in each of the vectors whose type says how many there are."""
    fields = [*schema, *(f for s in recipe.stages if isinstance(s, Scorer) for f in s.fields())]
    return {f.name: f.type.list_size for f in fields if pa.types.is_fixed_size_list(f.type)}


def table_memory(stage: TableOperator, rows: int, text_bytes: int, lengths: dict[str, int]) -> int:
    """Upper bound of the bytes that a stage holds at once, with vectors of these lengths."""
    numbers = max((lengths.get(name, LIST_NUMBERS) for name in stage.vectors()), default=0)
    return stage.memory(rows, text_bytes) + 4 * numbers * stage.held_vectors(rows)


def memory_needed(recipe: Recipe, corpus: Corpus, workers: int) -> tuple[int, str]:
    """Upper bound of the resident bytes of a run, and what takes most of them."""
    group = max((shard.bytes // len(shard.groups) for shard in corpus.shards), default=0)
    each = max(WORKER_BYTES, min(2 * group, 2 * WORKER_BYTES))
    others = 0 if recipe.runner == "threads" else workers
    fixed = BASE_BYTES + others * PROCESS_BYTES + workers * each + corpus.rows * ROW_BYTES
    scorers = [stage for stage in recipe.stages if isinstance(stage, RowScorer)]
    fixed += (1 + others) * sum(stage.memory() for stage in scorers)
    fixed += KNOWN_BYTES * corpus.rows * any(stage.costly for stage in scorers)
    fixed += MARK_BYTES * corpus.rows * sum(isinstance(s, Marker) for s in recipe.stages)
    lengths = vector_lengths(recipe, corpus.schema)
    needs = {
        stage.stage: table_memory(stage, corpus.rows, corpus.bytes, lengths)
        for stage in recipe.stages
        if isinstance(stage, TableOperator)
    }
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, Generator):
            earlier = {s.stage: s for s in recipe.stages[:index]}
            needs[stage.stage] = stage.memory(corpus.rows, earlier)
    largest = max(needs, key=lambda name: needs[name], default="")
    return fixed + needs.get(largest, 0), largest
