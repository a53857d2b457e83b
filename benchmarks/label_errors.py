"""Which way of finding wrong labels finds them: tamis's detectors beside the plain calls.

Sets with wrong labels that people made, and sets with injected ones (a share of the labels changed
to any other class, or to the next class), several seeds each: a seed draws the rows, the errors and
all that is random in training. All methods see the same MiniLM vectors.

- Plain cleanlab: `get_label_quality_scores` with its default (self-confidence), or by normalised
  margin, or `find_label_issues` ranked, on 5-fold probabilities of scikit-learn's
  LogisticRegression.
- Plain small loss: the loss of each row's label under a LogisticRegression fitted to all rows.
- tamis: the stage `probe` with its defaults, every detector on it, and `label_consensus`.

Average precision and AUROC of the ranking, wrong labels being the positives. Then what it is good
for: the accuracy on clean labels of a LogisticRegression trained on all rows, without those that
are probably wrong, and without as many drawn at random.

    export OMP_NUM_THREADS=1
    python benchmarks/label_errors.py DATA --work bench-work --write docs/label-noise.md

Every result is added to WORK/results.jsonl as it comes, and is not computed twice; so the script
can be stopped, and several can share the work (`--sets`).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Bools, Floats, Ints
from label_sets import Cell, Labelled, bundle, draw, synthetic

import tamis

#: By the detector's name in the table: the stage that gives it, its column, and the suspicious end.
DETECTORS: dict[str, tuple[dict[str, Any], str, str]] = {
    "aum": ({"operator": "aum"}, "aum", "low"),
    "confidence": ({"operator": "data_map"}, "confidence", "low"),
    "variability": ({"operator": "data_map"}, "variability", "high"),
    "correctness": ({"operator": "data_map"}, "correctness", "low"),
    "forgetting": ({"operator": "forgetting"}, "forgetting", "high"),
    "el2n": ({"operator": "el2n"}, "el2n", "high"),
    "training_loss": ({"operator": "training_loss"}, "training_loss", "high"),
    "late_stopping": ({"operator": "late_stopping"}, "late_stopping", "high"),
    "early_learning_target": (
        {"operator": "early_learning_target"},
        "early_learning_target",
        "low",
    ),
    "self_confidence": ({"operator": "self_confidence"}, "self_confidence", "low"),
    "normalized_margin": ({"operator": "normalized_margin"}, "normalized_margin", "low"),
    "confidence_weighted_entropy": (
        {"operator": "confidence_weighted_entropy"},
        "confidence_weighted_entropy",
        "low",
    ),
    "max_softmax": ({"operator": "max_softmax"}, "max_softmax", "low"),
    "label_agreement": (
        {"operator": "label_agreement", "embedding": "vector"},
        "label_agreement",
        "low",
    ),
    "consensus by rank": (
        {"operator": "label_consensus", "name": "by_rank", "combine": "rank"},
        "by_rank",
        "high",
    ),
    "label_consensus": ({"operator": "label_consensus"}, "label_consensus", "high"),
}
DEFAULT = "label_consensus"
CLEANLAB = "cleanlab, self-confidence"
SMALL_LOSS = "small loss"
PLAIN = [CLEANLAB, "cleanlab, normalized margin", "cleanlab, find_label_issues", SMALL_LOSS]
#: The plain calls that the default is to beat.
RIVALS = [CLEANLAB, SMALL_LOSS]
FOLDS = 5


def logistic(vectors: Floats, label: Ints) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=1000).fit(vectors, label)


def plain(cell: Cell, seed: int) -> dict[str, Floats]:
    """How suspicious the plain calls find every row."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores
    from sklearn.model_selection import KFold

    classes, label = np.unique(cell.label, return_inverse=True)
    probs = np.zeros((len(label), len(classes)))
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    for fit, held in folds.split(cell.vectors):
        model = logistic(cell.vectors[fit], label[fit])
        probs[np.ix_(held, model.classes_)] = model.predict_proba(cell.vectors[held])
    confidence = get_label_quality_scores(label, probs)
    margin = get_label_quality_scores(label, probs, method="normalized_margin")
    issues = find_label_issues(label, probs, return_indices_ranked_by="self_confidence", n_jobs=1)
    listed = np.zeros(len(label))
    listed[issues] = 1.0
    whole = logistic(cell.vectors, label).predict_proba(cell.vectors)
    loss = -np.log(np.maximum(whole[np.arange(len(label)), label], 1e-300))
    return dict(zip(PLAIN, (-confidence, -margin, listed - confidence, loss), strict=True))


def detected(cell: Cell, seed: int) -> dict[str, Floats]:
    """How suspicious tamis's detectors find every row."""
    with tempfile.TemporaryDirectory() as folder:
        flat = pa.array(np.ascontiguousarray(cell.vectors, np.float32).ravel())
        rows = pa.table(
            {
                "id": np.arange(len(cell.label)),
                "text": pa.array(["-"] * len(cell.label)),
                "label": [f"{label:05d}" for label in cell.label],
                "vector": pa.FixedSizeListArray.from_arrays(flat, cell.vectors.shape[1]),
            }
        )
        pq.write_table(rows, f"{folder}/rows.parquet")
        stages = [{"operator": "probe", "embedding": "vector", "logits": True, "seed": seed}]
        for stage, _, _ in DETECTORS.values():
            stages += [] if stage in stages else [stage]
        run = tamis.run(
            {
                "corpus": {
                    "path": f"{folder}/rows.parquet",
                    "roles": {"id": "id", "text": "text", "label": "label"},
                },
                "stages": stages,
                "workspace": f"{folder}/work",
            }
        )
        columns = ", ".join(dict.fromkeys(column for _, column, _ in DETECTORS.values()))
        found = tamis.sql(run, f"SELECT id, {columns} FROM rows JOIN scores USING (row_id, copy)")
        found = found.sort("id")
    return {
        name: found[column].to_numpy() * (1.0 if end == "high" else -1.0)
        for name, (_, column, end) in DETECTORS.items()
    }


def judged(error: Bools, suspicious: dict[str, Floats]) -> dict[str, list[float]]:
    """Average precision and AUROC of every ranking."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        name: [
            float(average_precision_score(error, value)),
            float(roc_auc_score(error, value)),
        ]
        for name, value in suspicious.items()
    }


def reliability(error: Bools, p: Floats) -> list[list[float]]:
    """By tenths of P(wrong): rows, mean P, and share of wrong labels."""
    tenth = np.minimum((p * 10).astype(int), 9)
    return [
        [float((tenth == t).sum()), float(p[tenth == t].sum()), float(error[tenth == t].sum())]
        for t in range(10)
    ]


def downstream(found: Labelled, cell: Cell, p: Floats, seed: int) -> dict[str, float]:
    """Accuracy on clean labels of a LogisticRegression trained on what is kept."""
    assert found.test is not None
    vectors, right = found.test
    random = np.random.default_rng(seed)
    result: dict[str, float] = {"error rate": float(cell.error.mean())}

    def accuracy(kept: Bools) -> float:
        model = logistic(cell.vectors[kept], cell.label[kept])
        return float((model.predict(vectors) == right).mean())

    def at_random(count: int) -> Bools:
        kept = np.ones(len(p), np.bool_)
        kept[random.permutation(len(p))[:count]] = False
        return kept

    suspicious = np.argsort(-p, kind="stable")
    counts = {"P >= 0.5": int((p >= 0.5).sum()), "known rate": int(cell.error.sum())}
    result["all rows"] = accuracy(np.ones(len(p), np.bool_))
    for name, count in counts.items():
        kept = np.ones(len(p), np.bool_)
        kept[suspicious[:count]] = False
        result[f"{name}, dropped"] = count / len(p)
        result[f"{name}, cleaned"] = accuracy(kept)
        result[f"{name}, random"] = accuracy(at_random(count))
    return result


def conditions(found: Labelled, rates: list[float]) -> Iterator[tuple[str, float]]:
    """Kinds and rates of noise for a set."""
    if found.error is not None:
        yield "natural", 0.0
    for kind in ("symmetric", "pair"):
        for rate in rates:
            yield kind, rate


def measure(
    sets: dict[str, Labelled], rates: list[float], seeds: int, rows: int, file: Path, parts: str
) -> None:
    """Fill the file of results; a line for each cell and part."""
    done = {(r["set"], r["noise"], r["rate"], r["seed"], r["part"]) for r in results(file)}
    for seed in range(seeds):
        for name, found in sets.items():
            for noise, rate in conditions(found, rates):
                cell = draw(found, noise, rate, seed, rows)
                for part in ("plain", "tamis"):
                    key = (name, noise, rate, seed, part)
                    if key in done or parts not in ("all", part):
                        continue
                    line: dict[str, Any] = dict(
                        zip(("set", "noise", "rate", "seed", "part"), key, strict=True)
                    )
                    if part == "plain":
                        line["scores"] = judged(cell.error, plain(cell, seed))
                    else:
                        suspicious = detected(cell, seed)
                        line["scores"] = judged(cell.error, suspicious)
                        p = suspicious[DEFAULT]
                        line["reliability"] = reliability(cell.error, p)
                        if found.test is not None and rate in (0.0, 0.2):
                            line["downstream"] = downstream(found, cell, p, seed)
                    with file.open("a") as out:
                        out.write(json.dumps(line) + "\n")


def results(file: Path) -> list[dict[str, Any]]:
    """The lines of the file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


#: Student's t for 95 %, two-sided, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values: Floats) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval over seeds (nan of one seed)."""
    if len(values) < 2:
        return float(np.mean(values)), math.nan
    t = _T.get(len(values) - 1, 1.96)
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / math.sqrt(len(values)))


def shown(values: Floats) -> str:
    mean, half = interval(values)
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def condition(noise: str, rate: float) -> str:
    return noise if noise == "natural" else f"{noise} {rate:.0%}"


def frame_of(lines: list[dict[str, Any]]) -> pl.DataFrame:
    """A row for every detector, cell and metric; only cells that both parts have."""
    flat = [
        {
            "set": line["set"],
            "condition": condition(line["noise"], line["rate"]),
            "seed": line["seed"],
            "detector": name,
            "AP": ap,
            "AUROC": auroc,
        }
        for line in lines
        for name, (ap, auroc) in line["scores"].items()
    ]
    frame = pl.DataFrame(flat)
    whole = pl.col("detector").n_unique().over("set", "condition", "seed")
    return frame.filter(whole == len(PLAIN) + len(DETECTORS))


def detector_table(frame: pl.DataFrame) -> list[list[str]]:
    """Detectors by condition: mean over sets of both figures, with the interval over seeds."""
    order = [*PLAIN, *DETECTORS]
    kinds = [
        *(f"natural: {name}" for name in frame.filter(condition="natural")["set"].unique().sort()),
        *frame.filter(pl.col("condition") != "natural")["condition"].unique(maintain_order=True),
    ]
    lines = [["detector", *kinds]]
    for detector in order:
        line = [f"**{detector}**" if detector == DEFAULT else detector]
        for kind in kinds:
            natural = kind.removeprefix("natural: ")
            rows = frame.filter(
                (pl.col("detector") == detector)
                & (
                    (pl.col("condition") == kind)
                    if natural == kind
                    else (pl.col("condition") == "natural") & (pl.col("set") == natural)
                )
            )
            by_seed = rows.group_by("seed").agg(pl.col("AP", "AUROC").mean()).sort("seed")
            line.append(f"{shown(by_seed['AP'].to_numpy())} / {shown(by_seed['AUROC'].to_numpy())}")
        lines.append(line)
    return lines


def verdicts(frame: pl.DataFrame) -> tuple[list[list[str]], dict[str, int]]:
    """The default beside the plain calls, set by set, and how often it is ahead."""
    lines = [
        ["set", "noise"]
        + [f"{name}: AP / AUROC" for name in (DEFAULT, *RIVALS)]
        + ["ahead of the better one by (AP / AUROC)", "beats both"]
    ]
    counts = {"cells": 0, "ahead": 0, "clearly": 0, "clearly behind": 0, "of all four": 0}
    for (name, kind), rows in frame.group_by(["set", "condition"], maintain_order=True):
        wide = {
            metric: rows.pivot("detector", index="seed", values=metric).sort("seed")
            for metric in ("AP", "AUROC")
        }
        gaps, worst, best = [], [], []
        for metric, table in wide.items():
            del metric
            mine = table[DEFAULT].to_numpy()
            theirs = max((table[r].to_numpy() for r in RIVALS), key=lambda v: float(v.mean()))
            all_four = max(float(table[r].to_numpy().mean()) for r in PLAIN)
            gaps.append(interval(mine - theirs))
            best.append(float(mine.mean()) > all_four)
            worst.append(mine - theirs)
        ahead = all(mean > 0 for mean, _ in gaps)
        clearly = all(mean - half > 0 for mean, half in gaps)
        counts["cells"] += 1
        counts["ahead"] += ahead
        counts["clearly"] += clearly
        counts["clearly behind"] += any(mean + half < 0 for mean, half in gaps)
        counts["of all four"] += all(best)
        lines.append(
            [str(name), str(kind)]
            + [
                " / ".join(f"{wide[m][d].mean():.3f}" for m in ("AP", "AUROC"))
                for d in (DEFAULT, *RIVALS)
            ]
            + [
                " / ".join(f"{mean:+.3f} ± {half:.3f}" for mean, half in gaps),
                ("yes, clearly" if clearly else "yes") if ahead else "no",
            ]
        )
    return lines, counts


def reliability_table(lines: list[dict[str, Any]]) -> list[list[str]]:
    """Mean P(wrong) against the share of wrong labels, for injected and natural noise."""
    kinds = {"injected": [], "natural, NoisyAG-News": []}  # type: dict[str, list[Any]]
    for line in lines:
        if "reliability" in line:
            if line["noise"] != "natural":
                kinds["injected"].append(line["reliability"])
            elif line["set"] == "NoisyAG-News":
                kinds["natural, NoisyAG-News"].append(line["reliability"])
    kinds = {kind: found for kind, found in kinds.items() if found}
    table = [["P(wrong)", *(f"{kind}: rows, mean P, wrong" for kind in kinds)]]
    sums = {kind: np.sum(found, axis=0) for kind, found in kinds.items()}
    for tenth in range(10):
        line = [f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}"]
        for total in sums.values():
            rows, p, wrong = total[tenth]
            line.append(f"{rows:,.0f}, {p / rows:.3f}, {wrong / rows:.3f}" if rows else "none")
        table.append(line)
    return table


def downstream_table(lines: list[dict[str, Any]]) -> list[list[str]]:
    """Accuracies on clean labels."""
    cells: dict[tuple[str, str], list[dict[str, float]]] = {}
    for line in lines:
        if "downstream" in line:
            key = (line["set"], condition(line["noise"], line["rate"]))
            cells.setdefault(key, []).append(line["downstream"])
    table = [
        [
            *("set", "noise", "all rows", "P >= 0.5 dropped (share)", "as many at random"),
            *("known rate dropped", "as many at random"),
        ]
    ]
    for (name, kind), found in cells.items():

        def of(key: str, found: list[dict[str, float]] = found) -> Floats:
            return np.array([one[key] for one in found])

        cleaned = shown(of("P >= 0.5, cleaned"))
        table.append(
            [
                name,
                kind,
                shown(of("all rows")),
                f"{cleaned} ({of('P >= 0.5, dropped').mean():.1%})",
                shown(of("P >= 0.5, random")),
                shown(of("known rate, cleaned")),
                shown(of("known rate, random")),
            ]
        )
    return table


def markdown(table: list[list[str]]) -> str:
    head, *body = table
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(doc: Path, part: str, text: str) -> None:
    """Put text between ``<!-- part -->`` and ``<!-- end of part -->``."""
    page = doc.read_text()
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    before, rest = page.split(begin)
    after = rest.split(end)[1]
    doc.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder of the labelled sets")
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    parser.add_argument("--sets", nargs="+", help="of these only")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=3000, help="drawn of a set for every seed")
    parser.add_argument("--parts", choices=["all", "plain", "tamis", "none"], default="all")
    parser.add_argument("--quick", action="store_true", help="one small set of our own, a minute")
    parser.add_argument("--write", type=Path, help="page whose tables are to be replaced")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    options.work.mkdir(parents=True, exist_ok=True)
    file = options.work / ("quick.jsonl" if options.quick else "results.jsonl")
    if options.quick:
        sets = synthetic()
        options.rates, options.seeds = [0.2], min(options.seeds, 2)
    elif options.data is None:
        parser.error("name the folder of the labelled sets, or --quick")
    else:
        sets = bundle(options.data, options.work)
    sets = {name: one for name, one in sets.items() if name in (options.sets or sets)}
    measure(sets, options.rates, options.seeds, options.rows, file, options.parts)

    lines = results(file)
    frame = frame_of(lines)
    table, (cells, counts) = detector_table(frame), verdicts(frame)
    summary = (
        f"`{DEFAULT}` is ahead of both plain calls in average precision and in AUROC in "
        f"{counts['ahead']} of {counts['cells']} cells, in {counts['clearly']} of them by more "
        f"than the interval; it is behind by more than the interval in one of the two figures in "
        f"{counts['clearly behind']}. It is ahead of all four plain rankings in "
        f"{counts['of all four']}."
    )
    parts = {
        "detectors": table,
        "cells": cells,
        "reliability": reliability_table(lines),
        "downstream": downstream_table(lines),
    }
    for name, part in parts.items():
        print(f"\n{name}\n\n{markdown(part)}")
        if options.write:
            write(options.write, f"table: {name}", markdown(part))
    print(f"\n{summary}")
    if options.write:
        write(options.write, "verdict", summary)


if __name__ == "__main__":
    main()
