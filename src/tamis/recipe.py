"""The recipe: a corpus, its roles, the stages and the output, checked before any work.

Example:
    >>> recipe = Recipe.model_validate(
    ...     {
    ...         "corpus": {"path": "corpus/*.parquet", "roles": {"text": "body"}},
    ...         "stages": [{"operator": "near_dedup", "threshold": 0.7}],
    ...         "output": {"path": "clean"},
    ...     }
    ... )
    >>> recipe.stages[0].stage
    'near_dedup'
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union

import pyarrow as pa
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

# Importing an operator registers it; a new one is added here.
from tamis.scoring import (  # noqa: F401
    anchors,
    boilerplate,
    c4,
    ches,
    compression,
    cross_entropy_difference,
    early_learning,
    embedding,
    fineweb_quality,
    gopher_quality,
    gopher_repetition,
    label_dynamics,
    label_probs,
    language,
    likelihood,
    logprobs,
    minhash,
    ngram_index,
    ngram_model,
    pii,
    preference,
    responses,
    segments,
    text_stats,
    token_count,
)
from tamis.scoring.operator import REGISTRY, Operator, RowScorer, Scorer, operator_class
from tamis.selectors import (  # noqa: F401
    budgets,
    cluster_scorer,
    component_rules,
    confident_learning,
    decontaminate,
    dynamics_rules,
    exact_dedup,
    importance,
    known_dedup,
    label_agreement,
    label_consensus,
    label_corrections,
    label_errors,
    label_review,
    label_weight,
    loss_rules,
    mixture_draw,
    near_dedup,
    ngram_likelihood,
    probe,
    prototypes,
    random_subset,
    relabel,
    repetition,
    representative_sample,
    row_weight,
    segment_dedup,
    semantic_leak,
    semdedup,
    sera,
    sera_bootstrap,
    subclasses,
    substring_dedup,
    target_weights,
    topics,
    training_dynamics,
    turn,
    where,
)
from tamis.storage.errors import UserError
from tamis.storage.places import Place, place_of
from tamis.storage.rows import OnDuplicateId

#: Rules that come with the package, as lists of stages.
_INCLUDES = Path(__file__).with_name("includes")
INCLUDE_DESCRIPTION = (
    "name of an include that comes with the package, or path, relative to this file, of a YAML "
    "file with a list `stages`"
)
RunnerKind = Literal["threads", "processes", "dask", "ray"]
#: Runners that reach other machines; they need Prefect.
CLUSTERS = ("dask", "ray")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_bytes(value: object) -> object:
    """Bytes from a number or a text such as ``8GB``, ``500 MB`` or ``2GiB``."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?)B?\s*", value, re.IGNORECASE)
    if not found:
        raise ValueError(f"{value!r} is no size; write 8GB or 500MB")
    number, unit, binary = float(found[1]), found[2].upper(), found[3]
    factor = 2 ** (10 * "KMGT".index(unit) + 10) if binary and unit else _UNITS[unit]
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no size; write 8GB or 500MB")
    return int(number * factor)


Size = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=int | str)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


#: Roles that hold text or chat messages.
CONTENT_ROLES = ("text", "prompt", "completion", "chosen", "rejected")
#: Roles in which a row must have a value to be used.
NEEDED_ROLES = (*CONTENT_ROLES, "label")


class Roles(_Part):
    """What columns are for."""

    text: str | None = Field(default=None, description="column that holds the text")
    prompt: str | None = Field(
        default=None, description="column of prompts: texts, or lists of chat messages"
    )
    completion: str | None = Field(default=None, description="column of answers to the prompts")
    chosen: str | None = Field(default=None, description="column of the preferred answers")
    rejected: str | None = Field(default=None, description="column of the answers not preferred")
    label: str | None = Field(
        default=None, description="column of classes: texts, integers, booleans or whole floats"
    )
    id: str | None = Field(default=None, description="column that identifies a row")
    domain: str | None = Field(
        default=None, description="column that says where a row is from; the manifest counts by it"
    )

    def columns(self) -> dict[str, str]:
        """Role to column, for the roles that are given."""
        return {role: column for role, column in self.model_dump().items() if column is not None}

    def required(self) -> list[str]:
        """Columns in which a row must have a value to be used."""
        return list(dict.fromkeys(c for r, c in self.columns().items() if r in NEEDED_ROLES))


class CorpusPart(_Part):
    """The input."""

    path: str = Field(
        description="file, folder, glob or URL; `python:` is this Python's own library, "
        "`python-pairs:` preference pairs of it"
    )
    format: (
        Literal["parquet", "jsonl", "csv", "arrow", "datasets", "python", "python-pairs"] | None
    ) = Field(default=None, description="format of the files; by their endings if not given")
    roles: Roles = Field(default=Roles(), description="what columns are for")
    identity: list[str] | None = Field(
        default=None, min_length=1, description="columns that make the row_id; all if not given"
    )
    on_duplicate_id: OnDuplicateId = Field(
        default="error", description="what to do with different rows that share an id"
    )
    shard_bytes: Size | None = Field(
        default=None,
        gt=0,
        description="uncompressed bytes a shard aims at; a sixteenth of its file, 32 to 512 MB",
    )

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if self.identity and self.roles.id:
            raise ValueError("give either the role `id` or `identity`, not both")
        return self

    def identity_in(self, schema: pa.Schema) -> list[str]:
        """Columns that make the row_id in a corpus with this schema."""
        return [self.roles.id] if self.roles.id else self.identity or schema.names

    @property
    def explicit_id(self) -> bool:
        """Whether the user said what makes the row_id: rows that share it must be equal."""
        return self.roles.id is not None or self.identity is not None


class OutputPart(_Part):
    """The dataset."""

    path: str = Field(
        description="folder or URL of the dataset; a dataset there is replaced as a whole"
    )
    add: list[str] | dict[str, str] = Field(
        default=[],
        description="scores to write as columns of the dataset; as a mapping, by the column's name",
    )

    @property
    def added(self) -> dict[str, str]:
        """Column of the dataset to the score that it holds."""
        return self.add if isinstance(self.add, dict) else {name: name for name in self.add}


def _stage_type() -> Any:
    classes = tuple(cls for _, cls in sorted(REGISTRY.items()))
    return Annotated[Union[classes], Field(discriminator="operator")]  # noqa: UP007


def _with_includes(schema: dict[str, Any]) -> None:
    """In a recipe as written a stage may also be an include; a `Recipe` holds none."""
    include = {
        "type": "object",
        "title": "Include",
        "properties": {"include": {"type": "string", "description": INCLUDE_DESCRIPTION}},
        "required": ["include"],
        "additionalProperties": False,
    }
    schema["items"] = {"anyOf": [schema["items"], include]}


class Recipe(_Part):
    """Everything a run is made of."""

    corpus: CorpusPart
    stages: list[_stage_type()] = Field(  # type: ignore[valid-type]
        description="operators, in the order they run, and includes, whose stages take their place",
        json_schema_extra=_with_includes,
    )
    output: OutputPart | None = Field(default=None, description="none: scores and ledger only")
    workspace: str | None = Field(
        default=None,
        description="folder of sidecars, ledger and catalog; OUTPUT.tamis if not given",
    )
    max_quarantine: float = Field(
        default=0.01, ge=0, le=1, description="share of bad rows from which the run stops"
    )
    memory: Size | None = Field(
        default=None, gt=0, description="peak resident memory allowed, such as 8GB"
    )
    workers: int | None = Field(default=None, ge=1, description="threads; all cores if not given")
    runner: RunnerKind = Field(
        default="threads",
        description="who works on the shards: threads or processes here, a Dask or a Ray cluster",
    )
    cluster: str | None = Field(
        default=None,
        description="address of the Dask scheduler or Ray cluster; one of this machine if not "
        "given",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        repeated = [
            name for name, count in Counter(s.stage for s in self.stages).items() if count > 1
        ]
        if repeated:
            raise ValueError(
                f"two stages are named {repeated[0]!r}: give one of them another `name`"
            )
        roles = self.corpus.roles.columns()
        for index, stage in enumerate(self.stages):
            for role in stage.used_roles():
                if role not in roles:
                    raise ValueError(
                        f"stages[{index}] ({stage.operator}) reads the role {role!r}: "
                        f"set corpus.roles.{role}"
                    )
        if self.cluster is not None and self.runner not in CLUSTERS:
            raise ValueError("`cluster` is the address for `runner: dask` or `runner: ray`")
        if self.output is None and self.workspace is None:
            raise ValueError("give an output path, a workspace, or both")
        return self

    def resolve(self, workspace: Place) -> Self:
        """This recipe with stages that say what of them lies outside it; see `Operator.resolve`."""
        return self.model_copy(update={"stages": [s.resolve(workspace) for s in self.stages]})

    @property
    def workspace_path(self) -> Place:
        """Folder of everything but the dataset."""
        if self.workspace is not None:
            return place_of(self.workspace)
        assert self.output is not None
        return place_of(str(place_of(self.output.path)).rstrip("/") + ".tamis")


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        UserError: naming the key at fault, such as ``stages[2].threshold``.
    """
    return check_recipe(read_yaml(Path(path), "recipe"), str(path))


def read_yaml(path: Path, what: str) -> Any:
    """The plain data of a YAML file.

    Raises:
        UserError: if it cannot be read, is not YAML or gives a key twice.
    """
    try:
        return yaml.load(path.read_text("utf-8"), _UniqueKeys)
    except OSError as error:
        raise UserError(f"cannot read the {what} ({error.strerror})", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the {what} is not UTF-8 text", where=str(path)) from error
    except yaml.YAMLError as error:
        raise UserError(f"not YAML: {' '.join(str(error).split())}", where=str(path)) from error


def check_recipe(value: Any, source: str = "recipe") -> Recipe:
    """Check a recipe given as plain data.

    Args:
        source: where it is from; paths of includes are relative to its folder.

    Raises:
        UserError: naming the key at fault, expected against found.
    """
    if not isinstance(value, dict):
        raise UserError("a recipe is a mapping with `corpus`, `stages` and `output`", where=source)
    places: list[str] = []
    if isinstance(value.get("stages"), list):
        stages, places = _expand(value["stages"], "stages", Path(source))
        value = {**value, "stages": stages}
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(problem, places) for problem in error.errors())
        raise UserError(
            "; ".join(problems),
            where=source,
            mend="`tamis recipe schema` prints every key",
        ) from error


def with_changes(recipe: Recipe, **changes: Any) -> Recipe:
    """A recipe with some of its keys set anew; those given as None stay as they are.

    Raises:
        UserError: if a value does not fit.
    """
    given = {key: value for key, value in changes.items() if value is not None}
    if not given:
        return recipe
    if given.get("runner", recipe.runner) != recipe.runner:
        given.setdefault("cluster", None)  # the recipe's cluster is not for this runner
    return check_recipe({**recipe.model_dump(mode="json"), **given}, "command line")


def _explain(problem: Any, places: list[str]) -> str:
    """One problem by its path; `places` are the paths of the stages as the user wrote them."""
    path = ""
    place = list(problem["loc"])
    # The discriminator's value stands in the path of a stage; users do not write it.
    if len(place) > 2 and place[0] == "stages" and place[2] in REGISTRY:
        del place[2]
    if len(place) > 1 and place[0] == "stages" and isinstance(place[1], int):
        path = places[place[1]]
        del place[:2]
    for part in place:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    message = str(problem["msg"]).removeprefix("Value error, ")
    message = re.sub(r"stages\[(\d+)\]", lambda found: places[int(found[1])], message)
    if problem["type"] == "missing":
        return f"{path}: required, but not there"
    if problem["type"] == "extra_forbidden":
        return f"{path}: no such key"
    if problem["type"].startswith("union_tag"):
        known = ", ".join(sorted(REGISTRY))
        return f"{path}: `operator` must be one of {known}"
    found = (
        "" if isinstance(problem["input"], dict | BaseModel) else f" (found {problem['input']!r})"
    )
    return f"{path}: {message}{found}" if path else message


def included_names() -> list[str]:
    """Names of the includes that come with the package."""
    return sorted(path.stem for path in _INCLUDES.glob("*.yaml"))


def _expand(
    stages: Sequence[Any], place: str, source: Path, within: tuple[Path, ...] = ()
) -> tuple[list[Any], list[str]]:
    """Put the stages of includes in their places; also the path of every stage as written.

    Args:
        place: path of the list of stages, such as ``stages`` or ``stages[1] (include gopher)``.
        source: the file that holds the list.
        within: the include files that are open, outermost first.
    """
    expanded: list[Any] = []
    places: list[str] = []
    for index, stage in enumerate(stages):
        here = f"{place}[{index}]"
        if not (isinstance(stage, dict) and "include" in stage):
            expanded.append(stage)
            places.append(here)
            continue
        name = stage["include"]
        if not isinstance(name, str):
            raise UserError(f"{here}.include: expected a name or a path, found {name!r}")
        if len(stage) > 1:
            other = next(key for key in stage if key != "include")
            raise UserError(f"{here}.{other}: an include takes no other key", where=str(source))
        path = _include_path(name, here, source)
        if path in within:
            chain = " includes ".join(p.stem for p in (*within[within.index(path) :], path))
            raise UserError(f"{here}: a circle, {chain}", where=str(source))
        fragment = read_yaml(path, f"include {name!r}")
        if not isinstance(fragment, dict) or not isinstance(fragment.get("stages"), list):
            raise UserError("an include is a mapping with a list `stages`", where=str(path))
        for key in fragment.keys() - {"stages"}:
            raise UserError(f"{key}: an include holds only `stages`", where=str(path))
        inner = f"{here} (include {name}) stages"
        found, found_places = _expand(fragment["stages"], inner, path, (*within, path))
        expanded += found
        places += found_places
    return expanded, places


def _include_path(name: str, here: str, source: Path) -> Path:
    """The file of an include: a name alone is one of ours, anything else a path."""
    if re.fullmatch(r"[A-Za-z0-9_-]+", name):
        path = _INCLUDES / f"{name}.yaml"
        if not path.is_file():
            raise UserError(
                f"{here}.include: no include named {name!r}",
                where=str(source),
                mend=f"known: {', '.join(included_names())}; or give a path such as ./{name}.yaml",
            )
        return path
    return (source.parent / name).resolve()


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, count in Counter(map(str, keys)).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return dict(super().construct_mapping(node, deep))


def scorer(name: str) -> type[Scorer]:
    """The scorer registered under a name.

    Raises:
        UserError: if there is none, or the operator is of another kind.
    """
    cls = operator_class(name)
    if not issubclass(cls, Scorer):
        raise UserError(
            f"{name} is a {cls.kind}: it gives no score", mend="use it as a stage of a recipe"
        )
    return cls


def row_scorer(name: str) -> type[RowScorer]:
    """The row scorer registered under a name.

    Raises:
        UserError: if there is none, or the operator is of another kind.
    """
    cls = scorer(name)
    if not issubclass(cls, RowScorer):
        raise UserError(
            f"{name} is a {cls.kind}: it needs the whole corpus",
            mend="use `tamis score` on a corpus, or a stage of a recipe",
        )
    return cls


def operators() -> dict[str, type[Operator]]:
    """All registered operators by name."""
    return dict(sorted(REGISTRY.items()))
