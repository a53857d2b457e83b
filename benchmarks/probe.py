"""How long a probe takes, how far that is from the floor, and what its probabilities are worth.

Speed: `tamis run` with one stage `probe`, defaults throughout, on vectors made up from a seed
(clusters, a fifth of the labels wrong), from Parquet to Parquet. Beside it scikit-learn's
`cross_val_predict` of `LogisticRegression`, one fold after the other, which gives the out-of-sample
probabilities only. The floor is what the matrix products alone would take on two idle cores.
Seconds of the processor are as the system counts them, which virtual machines do badly.

Quality (with `--data`): average precision and AUROC with which 1 - p(label) finds the labels that
people got wrong in NoisyAG-News, over seeds of the cut into folds; and the same texts with the true
labels and a fifth of them wrong at random.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from harness import print_table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

import tamis
from tamis.scoring.embedding import Embedding
from tamis.selectors.inner_products import one_blas_thread
from tamis.selectors.probe import Probe

Array = npt.NDArray[Any]


def products(rows: int, size: int, classes: int, probe: Probe) -> float:
    """Floating-point operations of the matrix products of all trainings."""

    def of(hidden: int, outputs: int) -> tuple[int, int]:
        """Of a row that is learnt from, and of one that is judged."""
        if not hidden:
            return 4 * size * outputs, 2 * size * outputs
        return 4 * size * hidden + 6 * hidden * outputs, 2 * hidden * (size + outputs)

    total = probe.runs * of(probe.hidden[0], classes + (probe.threshold_runs > 0))[0]
    for hidden in probe.hidden:
        learnt, judged = of(hidden, classes)
        total += probe.repeats * ((probe.folds - 1) * learnt + judged)
    return float(total) * rows * probe.epochs


def peak() -> float:
    """Operations a second of one core: the best of many short products of 512 x 512."""
    a = np.ones((512, 512), np.float32)
    best = 0.0
    with one_blas_thread():
        for _ in range(300):
            begin = time.perf_counter()
            a @ a
            best = max(best, 2 * 512**3 / (time.perf_counter() - begin))
    return best


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, and seconds of the clock and of the processor, those of children included."""
    begin, before = time.perf_counter(), sum(os.times()[:4])
    found = function()
    return found, time.perf_counter() - begin, sum(os.times()[:4]) - before


def made_up(rows: int, classes: int, size: int) -> tuple[Array, Array, Array]:
    """Vectors, labels, and which of them are wrong."""
    random = np.random.default_rng(0)
    true = random.integers(0, classes, rows)
    wrong = random.random(rows) < 0.2
    labels = np.where(wrong, (true + random.integers(1, classes, rows)) % classes, true)
    vectors = random.standard_normal((rows, size), dtype=np.float32)
    vectors += 0.2 * random.standard_normal((classes, size), dtype=np.float32)[true]
    names = np.array([f"c{i:05}" for i in range(classes)])  # in one order as numbers and as text
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), names[labels], wrong


def write(path: Path, vectors: Array, labels: Array) -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    ids = pa.array(range(len(labels)))
    pq.write_table(pa.table({"id": ids, "vector": column, "label": labels}), path)


def ours(folder: Path, **params: Any) -> Any:
    """A run on what `write` wrote."""
    corpus = {"path": str(folder / "in.parquet"), "roles": {"label": "label", "id": "id"}}
    stage = {"operator": "probe", "embedding": "vector", **params}
    workspace = tempfile.mkdtemp(dir=folder)
    return tamis.run({"corpus": corpus, "stages": [stage], "workspace": workspace})


def probs_of(result: Any) -> Array:
    """Out-of-sample probabilities of a run, in the order of the rows."""
    query = "SELECT probe_probs FROM scores JOIN rows USING (row_id, copy) ORDER BY id"
    return np.array(tamis.sql(result, query)["probe_probs"].to_list())


def theirs(vectors: Array, labels: Array, seed: int = 0) -> Array:
    """Out-of-sample probabilities by scikit-learn."""
    cut = StratifiedKFold(5, shuffle=True, random_state=seed)
    model = LogisticRegression(max_iter=1000)
    found: Array = cross_val_predict(model, vectors, labels, cv=cut, method="predict_proba")
    return found


def own(probs: Array, labels: Array) -> Array:
    """Probability of the label."""
    picked: Array = probs[np.arange(len(labels)), np.unique(labels, return_inverse=True)[1]]
    return picked


def speed(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    found = []
    write(folder / "in.parquet", *made_up(500, 3, arguments.size)[:2])
    ours(folder)  # compiles kernels
    for classes in arguments.classes:
        vectors, labels, wrong = made_up(arguments.rows, classes, arguments.size)
        write(folder / "in.parquet", vectors, labels)
        work = products(arguments.rows, arguments.size, classes, Probe())
        runs: dict[str, Callable[[], Any]] = {"tamis": lambda: ours(folder)}
        if not arguments.no_peer:
            runs["scikit-learn"] = lambda v=vectors, y=labels: theirs(v, y)
        for name, function in runs.items():
            floor = work / peak() / 2 if name == "tamis" else None
            result, clock, processor = timed(function)
            probs = probs_of(result) if name == "tamis" else result
            found.append(
                {
                    "classes": classes,
                    "name": name,
                    "clock": clock,
                    "processor": processor,
                    "floor": floor,
                    "auroc": float(roc_auc_score(wrong, -own(probs, labels))),
                }
            )
            print(json.dumps(found[-1]), flush=True)
    return found


def quality(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows = pl.read_parquet(arguments.data / "labels_noisyag_news.parquet")
    rows = rows.filter(pl.col("split") == "noisy")
    embedding = Embedding().resolve(folder)
    batch = embedding.compute(pa.record_batch({"text": rows["text"].to_arrow()}))
    flat = np.asarray(batch[embedding.stage].flatten(), np.float32)
    vectors = flat.reshape(len(rows), -1)
    true = rows["true_label"].to_numpy()
    random = np.random.default_rng(0)
    moved = random.random(len(true)) < 0.2
    injected = np.where(moved, (true + random.integers(1, 4, len(true))) % 4, true)
    cases = {"human errors": rows["human_label"].to_numpy(), "a fifth at random": injected}
    found = []
    for case, labels in cases.items():
        wrong = labels != true
        write(folder / "in.parquet", vectors, labels)
        for name in ("tamis", "scikit-learn"):
            scores = []
            for seed in range(arguments.seeds):
                if name == "tamis":
                    probs = probs_of(ours(folder, seed=seed))
                else:
                    probs = theirs(vectors, labels, seed)
                p = own(probs, labels)
                loss = -np.log(np.maximum(p, 1e-12)).mean()
                scores.append([roc_auc_score(wrong, -p), average_precision_score(wrong, -p), loss])
            mean, spread = np.mean(scores, axis=0), np.std(scores, axis=0, ddof=1)
            found.append({"case": case, "name": name, "mean": [*mean], "spread": [*spread]})
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=384, help="numbers of a vector")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--no-peer", action="store_true", help="tamis only")
    parser.add_argument("--data", type=Path, help="folder of labels_noisyag_news.parquet")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.data:
            table = [
                [r["case"], r["name"]]
                + [f"{m:.4f} ± {s:.4f}" for m, s in zip(r["mean"], r["spread"], strict=True)]
                for r in quality(arguments, folder)
            ]
            print_table(("labels", "by", "AUROC", "AP", "log-loss"), table, 2)
        table = [
            [
                str(r["classes"]),
                r["name"],
                f"{r['clock']:.1f}",
                f"{r['processor']:.1f}",
                "" if r["floor"] is None else f"{r['floor']:.1f}",
                f"{r['auroc']:.4f}",
            ]
            for r in speed(arguments, folder)
        ]
        header = ("classes", "by", "seconds", "of the processor", "floor, seconds", "AUROC")
        print_table(header, table, 2)


if __name__ == "__main__":
    main()
