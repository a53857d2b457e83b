"""The small runs of a design: trained beside each other, each stored when it ends."""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import ValidationError

from tamis.flows.processes import Processes
from tamis.scoring.mixture_runs import LOSS, MIX, check_table_target, inputs_of, read_table
from tamis.scoring.model_files import need_package
from tamis.storage.errors import RunError, UserError
from tamis.storage.files import (
    digest_of,
    keep_json,
    kept_json,
    locked,
    read_json,
    whole_file,
    write_json,
)
from tamis.storage.mixture_plan import MixturePlan, load_plan
from tamis.storage.places import absolute, place_of
from tamis.storage.tasks import BYTES_PER_SECOND, TASK_SECONDS, Task
from tamis.storage.token_shards import TokenShards, local_folder

if TYPE_CHECKING:
    from polars import DataFrame

    from tamis.scoring.proxy_training import ProxyRun, ProxySettings

#: Columns of a table of runs that the training fills in.
_OWN = ("seed", "steps", "size", "tokens")

#: Called with runs done, runs in all, tokens a second since the start, and seconds left.
Told = Callable[[int, int, float, float], None]


class TrainProxy(Task):
    """Train the runs of a list, one an item, and store what came of each.

    Attributes:
        tokens: folder of the tokens.
        jobs: file of `keep_json` with the ``runs``: phases, settings and file of each.
    """

    task: Literal["train_proxy"] = "train_proxy"
    label: ClassVar[str] = "proxies"
    tokens: str
    jobs: str

    def run(self, item: int) -> str:
        from tamis.scoring.proxy_training import ProxySettings, train_proxy

        job = kept_json(self.jobs)["runs"][item]
        plan = MixturePlan.model_validate(job["plan"])
        settings = ProxySettings.model_validate(job["settings"])
        try:
            found = train_proxy(TokenShards.open(self.tokens), plan, settings)
        except RunError as error:
            mixed = ", ".join(f"{n} {share:.3g}" for n, share in plan.over_all().items())
            where = f"mixture {mixed}, seed {settings.seed}"
            raise RunError(error.what, where=where, mend=error.mend) from None
        path = place_of(job["file"])
        write_json(path, {**job, "run": found.model_dump(mode="json")})
        return str(path)


class ProxyDesign(NamedTuple):
    """Mixtures to train on.

    Attributes:
        table: columns of the runs table that are there before training.
        plans: a row each.
    """

    table: "DataFrame"
    plans: list[MixturePlan]


def proxy_settings(size: str = "tiny", **given: Any) -> "ProxySettings":
    """Settings by the name of a size, with what is given besides.

    Raises:
        UserError: for another size or setting, or a value out of range.
    """
    need_package("torch", "training proxies", "models")
    from tamis.scoring.proxy_training import SIZES, ProxySettings

    if size not in SIZES:
        raise UserError(f"no size {size!r}", mend=f"one of {', '.join(SIZES)}")
    try:
        return ProxySettings(**{**SIZES[size], **given})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        message = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(
            f"{name}: {message}" if name else message,
            mend=f"settings: {', '.join(ProxySettings.model_fields)}",
        ) from None


def read_design(path: str | Path) -> ProxyDesign:
    """A design table, with a column ``mix_<domain>`` a domain, or one mixture file (JSON).

    Raises:
        UserError: if it is neither, or proportions are none.
    """
    import polars as pl

    if str(path).endswith(".json"):
        plan = load_plan(path)
        shares = {f"{MIX}{name}": [share] for name, share in plan.over_all().items()}
        return ProxyDesign(pl.DataFrame({"run": [0], **shares}), [plan])
    table = read_table(path)
    mixed = [name for name in table.columns if name.startswith(MIX)]
    if not mixed or not len(table):
        raise UserError(
            "no runs in the design" if mixed else f"no column starts with {MIX!r}",
            where=str(path),
            mend="`tamis mix design` writes one; or give a mixture file (.json)",
        )
    try:
        values = table.select(pl.col(mixed).cast(pl.Float64)).fill_null(float("nan")).to_numpy()
        mixtures = inputs_of([n.removeprefix(MIX) for n in mixed], values).mixtures
    except pl.exceptions.PolarsError as error:
        raise UserError(str(error).splitlines()[0], where=str(path)) from error
    except UserError as error:
        raise UserError(error.what, where=str(path), mend=error.mend) from None
    names = [name.removeprefix(MIX) for name in mixed]
    plans = [MixturePlan.of(dict(zip(names, row, strict=True))) for row in mixtures.tolist()]
    if "run" not in table.columns:
        table = table.with_row_index("run").with_columns(pl.col("run").cast(pl.Int64))
    kept = [n for n in table.columns if not n.startswith((LOSS, "epochs_")) and n not in _OWN]
    return ProxyDesign(table.select(kept), plans)


def train_design(
    tokens: str | Path,
    design: ProxyDesign,
    out: str | Path,
    settings: Sequence["ProxySettings"],
    *,
    workers: int | None = None,
    told: Told | None = None,
) -> "DataFrame":
    """Train every mixture of a design with every one of some settings, and write the runs table.

    A run is a process's work; as many go on beside each other as there are workers. What each gave
    is stored in the folder ``OUT.runs`` under a key of tokens, mixture, settings and versions,
    and never trained again. The table is written when all have ended, with the losses at earlier
    steps beside it (``OUT.curve.parquet``) if the settings ask for some.

    Args:
        settings: one a seed.
        told: called when a run has ended.

    Returns:
        The runs, those of a mixture beside each other.

    Raises:
        UserError: if the design has a domain that the tokens lack, or sees one too often, or if
            what is there already is no table of runs.
        RunError: if a run's loss is no number any more.
    """
    need_package("torch", "training proxies", "models")
    import polars as pl

    opened = TokenShards.open(tokens)
    target = local_folder(out)
    if target.suffix != ".parquet":
        raise UserError("the runs table is Parquet", where=str(out), mend="name it RUNS.parquet")
    curved = target.with_suffix(".curve.parquet")
    for path in (target, curved) if any(one.curve for one in settings) else (target,):
        check_table_target(path)
    _check(opened, design, settings)
    folder = target.with_suffix(".runs")
    jobs = [_job(opened, plan, one, folder) for plan in design.plans for one in settings]
    with locked(folder):
        todo = [job for job in jobs if _stored(job) is None]
        listed = keep_json(absolute(folder) / "orders", {"runs": todo})
        task = TrainProxy(tokens=str(absolute(opened.folder)), jobs=listed)
        _train_all(task, todo, len(jobs), workers, told)
        runs = [run for job in jobs if (run := _stored(job)) is not None]
        rows = [n // len(settings) for n in range(len(jobs))]
        seeds = pl.Series("seed", [job["settings"]["seed"] for job in jobs], pl.Int64)
        table, curve = _tables(design.table[rows].with_columns(seeds), runs)
        with whole_file(target) as temporary:
            table.write_parquet(temporary)
        if curve is not None:
            with whole_file(curved) as temporary:
                curve.write_parquet(temporary)
    return table


def _check(opened: TokenShards, design: ProxyDesign, settings: Sequence["ProxySettings"]) -> None:
    """Raise if a run cannot be trained, before the first is."""
    from tamis.scoring.proxy_training import check_run

    for number, plan in enumerate(design.plans):
        for one in settings:
            try:
                check_run(opened, plan, one)
            except UserError as error:
                where = f"{opened.folder}, run {design.table['run'][number]} of the design"
                raise UserError(error.what, where=where, mend=error.mend) from None


def _job(
    opened: TokenShards, plan: MixturePlan, settings: "ProxySettings", folder: Path
) -> dict[str, Any]:
    """A run as plain JSON, with the file that is kept of it."""
    from tamis.scoring.proxy_training import VERSION

    made = {"plan": plan.model_dump(mode="json", include={"phases"})}
    made["settings"] = settings.model_dump(mode="json")
    # How often a domain may be seen decides whether there is a run, not what comes of it.
    decide = {name: value for name, value in made["settings"].items() if name != "epochs"}
    key = digest_of([VERSION, version("torch"), opened.digest, made["plan"], decide])
    return {"key": key, **made, "file": str(absolute(folder) / f"{key}.json")}


def _stored(job: Mapping[str, Any]) -> "ProxyRun | None":
    """What came of a run, if it has been trained."""
    from tamis.scoring.proxy_training import ProxyRun

    try:
        found = read_json(place_of(job["file"]))
        return ProxyRun.model_validate(found["run"]) if found["key"] == job["key"] else None
    except (FileNotFoundError, json.JSONDecodeError, KeyError, ValidationError):
        return None


def _train_all(
    task: TrainProxy,
    todo: list[dict[str, Any]],
    runs: int,
    workers: int | None,
    told: Told | None,
) -> None:
    if not todo:
        return
    begun, lock = time.monotonic(), threading.Lock()
    settings = todo[0]["settings"]
    each = settings["steps"] * settings["batch"] * settings["context"]
    done = 0

    def one(item: int) -> None:
        nonlocal done
        with lock:
            done += 1
            if told is not None:
                took = time.monotonic() - begun
                left = took / done * (len(todo) - done)
                told(runs - len(todo) + done, runs, done * each / took, left)

    if workers is None:
        workers = 1 if settings["device"] == "cuda" else len(os.sched_getaffinity(0))
    with Processes(min(workers, len(todo)), ("tamis.flows.proxy_runs",)) as processes:
        # A run is worth a task of its own.
        processes.map(task, [int(TASK_SECONDS * BYTES_PER_SECOND)] * len(todo), one)


def _tables(table: "DataFrame", runs: Sequence["ProxyRun"]) -> "tuple[DataFrame, DataFrame | None]":
    """The runs table, and the same at earlier steps where these were measured."""
    import polars as pl

    def numbers(run: "ProxyRun", step: int, losses: dict[str, float]) -> dict[str, Any]:
        share = step / run.curve[-1]["step"]
        return {
            "steps": step,
            "size": run.parameters,
            "tokens": round(sum(run.tokens_seen.values()) * share),
            **{f"{LOSS}{name}": loss for name, loss in losses.items()},
        }

    last = [numbers(run, run.curve[-1]["step"], run.losses) for run in runs]
    epochs = [{f"epochs_{name}": seen for name, seen in run.epochs.items()} for run in runs]
    whole = pl.concat([table, pl.DataFrame(last), pl.DataFrame(epochs)], how="horizontal")
    if all(len(run.curve) == 1 for run in runs):
        return whole, None
    rows = [n for n, run in enumerate(runs) for _ in run.curve]
    points = [numbers(run, p["step"], p["losses"]) for run in runs for p in run.curve]
    return whole, pl.concat([table[rows], pl.DataFrame(points)], how="horizontal")
