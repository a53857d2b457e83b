"""The rows of a run that has ended, or of any corpus, as records can be held against them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.recipe import Recipe, check_recipe
from tamis.scoring.evaluate import Evaluated
from tamis.scoring.operator import RowScorer, Scorer
from tamis.selectors.near_dedup import NearDedup
from tamis.selectors.reference import Reference
from tamis.selectors.resemblance import Resemblance
from tamis.selectors.table import Table
from tamis.storage.catalog import WORKSPACE_MANIFEST
from tamis.storage.columns import Beside, Mask, Source
from tamis.storage.corpus import Corpus, Progress, Shard
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import keep_json, read_json
from tamis.storage.hashing import hex_ids
from tamis.storage.kernels import in_threads
from tamis.storage.ledger import QUARANTINED, STAYS
from tamis.storage.places import (
    Place,
    absolute,
    is_remote,
    kind_of,
    parquet_file,
    place_errors,
    place_of,
    shown,
    size_of,
    version_of,
)
from tamis.storage.rows import Rows
from tamis.storage.tasks import Runner

_IDS = ("id_hi", "id_lo", "copy", "action", "stage")
_DECISION = (
    *("action", "stage", "reason", "similarity", "partner_source"),
    *("partner_hi", "partner_lo", "partner_copy"),
)


@dataclass(frozen=True)
class History:
    """Rows with their signatures.

    Attributes:
        table: the rows.
        signed: where their signatures are.
        resemblance: the stage whose parameters made them.
        rewrite: what the run made of texts before it compared them.
        decision: what the run decided on a row of the table.
    """

    table: Table
    signed: Evaluated
    resemblance: Resemblance
    rewrite: Callable[[pa.Array], pa.Array]
    decision: Callable[[int], dict[str, Any]]


def history_of(
    against: str,
    scratch: Place,
    runner: Runner,
    progress: Progress,
    *,
    text: str = "text",
    format: str | None = None,
    workspace: str | None = None,
) -> History:
    """The run whose workspace or dataset a path names; else the corpus that it names.

    Args:
        scratch: folder for what is written meanwhile; a run's workspace is only read.
        text, format: of a corpus.
        workspace: where the signatures of a corpus are kept; ``CORPUS.tamis`` if not given.

    Raises:
        UserError: if there is neither, or the run compared no texts by signatures.
    """
    beside = against.rstrip("/").split("*")[0].rstrip("/:") + ".tamis"
    for home in (place_of(against), place_of(beside)):
        if "*" in str(home) or not _is_workspace(home):
            continue
        manifest, recipe = _last_run(absolute(home))
        # `tamis score` and others leave a workspace beside a corpus that compared nothing.
        if str(home) == str(place_of(against)) or _compares(recipe):
            return _of_run(absolute(home), manifest, recipe, scratch, runner, progress)
    home = place_of(workspace or beside)
    reference = Reference(path=against, text=text, format=format).resolve(home)
    table = reference.open(home, runner, progress, scratch)
    stage = NearDedup()
    return History(table, table.evaluated(stage.signal), stage, lambda texts: texts, lambda row: {})


def _is_workspace(home: Place) -> bool:
    place = home / WORKSPACE_MANIFEST
    if kind_of(home) != "directory" or kind_of(place) is None:
        return False
    with place_errors(place):
        return "ledger" in read_json(place)


def _last_run(home: Place) -> tuple[dict[str, Any], Recipe]:
    manifest = read_json(home / WORKSPACE_MANIFEST)
    return manifest, check_recipe({**manifest["recipe"], "output": None, "workspace": str(home)})


def _of_run(
    home: Place,
    manifest: dict[str, Any],
    recipe: Recipe,
    scratch: Place,
    runner: Runner,
    progress: Progress,
) -> History:
    stage = _comparing(recipe, home)
    try:
        found = manifest["sidecars"][stage.stage]["minhash"]
        corpus = _corpus(manifest, home)
    except KeyError as error:
        raise UserError(
            f"the run was made by another version of tamis (no {error})",
            where=shown(home),
            mend="run its recipe again: what was computed is kept",
        ) from error
    ledger = [home / name for name in manifest["ledger"]]
    # What an earlier stage dropped after it had asked for the same signatures was seen as well.
    sidecars = manifest["sidecars"]
    first = next(n for n in sidecars if sidecars[n].get("minhash") == found)
    rows, seen = _rows(corpus, ledger, recipe, first, runner.workers)
    rewriters = _rewriters(recipe, stage, home)
    text: Source = str(recipe.corpus.roles.text)
    if rewriters:
        name = rewriters[-1].stage
        given = {**manifest["scores"], **manifest["signals"]}[name]
        folder = home / given["files"][0].rpartition("/")[0] if given["files"] else home
        results = keep_json(scratch, {"folder": str(folder), "steps": given["steps"]})
        text = Beside(results=results, column=rewriters[-1].rewrites()["text"])
    table = Table(
        corpus=corpus,
        rows=rows,
        kept=seen,
        positions=np.flatnonzero(seen),
        columns={"text": text},
        rewritten={},
        scores={},
        workspace=home,
        runner=runner,
        progress=progress,
        orders=scratch,
    )
    paths = tuple(home / name for name in found["files"])
    signed = Evaluated(stage.signal, corpus.shards, paths, tuple(found["steps"]), "")

    def rewritten(texts: pa.Array) -> pa.Array:
        for scorer in rewriters:
            texts = scorer.compute(pa.record_batch({"text": texts}))[scorer.rewrites()["text"]]
        return texts

    def decision(row: int) -> dict[str, Any]:
        position = int(table.positions[row])
        index = int(np.searchsorted(rows.start, position, side="right")) - 1
        return _decision(ledger[index], position - int(rows.start[index]))

    return History(table, signed, stage, rewritten, decision)


def _compares(recipe: Recipe) -> list[Resemblance]:
    """The stages that compared texts by signatures."""
    stages = [s for s in recipe.stages if isinstance(s, Resemblance)]
    return [s for s in stages if not getattr(s, "exact", False)]


def _comparing(recipe: Recipe, home: Place) -> Resemblance:
    """The stage that compared all rows with each other, or with other corpora."""
    stages = _compares(recipe)
    chosen = [s for s in stages if isinstance(s, NearDedup)] or stages
    if not chosen:
        raise UserError(
            "the run compared no texts, so that it has no signatures",
            where=shown(home),
            mend="run it with `- operator: near_dedup`, or give the corpus itself",
        )
    return chosen[-1]


def _rewriters(recipe: Recipe, stage: Resemblance, home: Place) -> list[RowScorer]:
    """The stages before it that made new texts, in order.

    Raises:
        UserError: if one of them needs more than a text to do so, such as all other rows.
    """
    before = recipe.stages[: [s.stage for s in recipe.stages].index(stage.stage)]
    found: list[RowScorer] = []
    for scorer in before:
        if not isinstance(scorer, Scorer) or "text" not in scorer.rewrites():
            continue
        if not isinstance(scorer, RowScorer) or _inputs(scorer) != {"text"}:
            raise UserError(
                f"the run compared texts that {scorer.stage} had rewritten by more than the text "
                "itself, such as other rows; that cannot be done to a text asked about",
                where=shown(home),
                mend=f"put {stage.stage} before {scorer.stage} in its recipe and run it again",
            )
        found.append(scorer)
    return found


def _inputs(scorer: RowScorer) -> set[str]:
    return {*scorer.used_roles(), *scorer.reads()}


def _corpus(manifest: dict[str, Any], home: Place) -> Corpus:
    """The shards of a run, as they were; whoever reads one finds whether its file has changed.

    Raises:
        UserError: if a file of the corpus is not what it was, as far as its size tells.
    """
    sizes = {entry["path"]: entry["bytes"] for entry in manifest["inputs"]}
    versions: dict[str, str] = {}
    shards = []
    for entry in manifest["shards"]:
        path = place_of(entry["path"])
        ingested = not is_remote(path) and not path.is_absolute()
        path = home / entry["path"] if ingested else path
        name = str(path)
        if name not in versions:
            there = kind_of(path) == "file"
            if not there or not (ingested or size_of(path) == sizes[entry["source"]]):
                raise UserError(
                    "the corpus has changed since the run",
                    where=shown(path),
                    mend="run the recipe again: what was computed for other files is kept",
                )
            versions[name] = version_of(path)
        shards.append(
            Shard(
                index=entry["shard"],
                path=path,
                groups=range(*entry["groups"]),
                rows=entry["rows"],
                bytes=entry["bytes"],
                digest=entry["digest"],
                source=entry["source"],
                first_row=entry["first_row"],
                version=versions[name],
            )
        )
    return Corpus(pa.schema([]), tuple(shards), ())


def _rows(
    corpus: Corpus, ledger: list[Place], recipe: Recipe, stage: str, workers: int
) -> tuple[Rows, Mask]:
    """All rows of the run, and which of them came as far as a stage."""
    start = np.cumsum([0, *(shard.rows for shard in corpus.shards)]).astype(np.int64)
    count = int(start[-1])
    id_hi, id_lo = np.empty(count, np.uint64), np.empty(count, np.uint64)
    copy, kept = np.empty(count, np.uint32), np.empty(count, np.bool_)
    names = [s.stage for s in recipe.stages]
    earlier = pa.array(names[: names.index(stage)], pa.string())

    def read(shard: Shard) -> None:
        path = ledger[shard.index]
        with place_errors(path), parquet_file(path) as file:
            found = file.read(columns=list(_IDS), use_threads=False)
        if found.num_rows != shard.rows:
            raise RunError(f"expected {shard.rows} rows, found {found.num_rows}", where=str(path))
        here = slice(int(start[shard.index]), int(start[shard.index + 1]))
        id_hi[here], id_lo[here] = found["id_hi"].to_numpy(), found["id_lo"].to_numpy()
        copy[here] = found["copy"].to_numpy()
        unusable = pc.and_(pc.equal(found["action"], QUARANTINED), pc.is_null(found["stage"]))
        gone = pc.invert(pc.is_in(found["action"], value_set=pa.array(STAYS)))
        gone = pc.and_(gone, pc.is_in(found["stage"], value_set=earlier))
        lost = pc.or_(unusable, gone)
        kept[here] = ~np.asarray(lost)

    in_threads(read, corpus.shards, workers)
    return Rows(id_hi, id_lo, copy, np.zeros(count, np.bool_), start), kept


def _decision(path: Place, row: int) -> dict[str, Any]:
    """What the ledger says of a row of its shard."""
    with place_errors(path), parquet_file(path) as file:
        found = file.read(columns=list(_DECISION)).slice(row, 1).to_pylist()[0]
    partner = None
    if found["partner_hi"] is not None:
        halves = np.array([found["partner_hi"], found["partner_lo"]], np.uint64)
        (partner,) = hex_ids(halves[:1], halves[1:])
    return {
        "action": found["action"],
        "stage": found["stage"],
        "reason": found["reason"],
        "partner": partner,
        "partner_copy": found["partner_copy"],
        "partner_source": found["partner_source"],
        "partner_similarity": found["similarity"],
    }
