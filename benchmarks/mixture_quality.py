"""How often scores are cut that have one component, and how well a cut finds wrong labels.

    python benchmarks/mixture_quality.py [--draws 20] [--data DATA --work WORK]

First part: scores drawn from one component of many shapes, and from two, at several sizes. A rule
errs by cutting the first ("false cuts") or by not cutting the second ("missed cuts"). The rules:
BIC of two Gaussians against one; the likelihood ratio of the same by a parametric bootstrap (99
draws, 5 %); and tamis's, with several least gains.

Second part, with `--data` (the folder of the shared sets): losses of a logistic regression on
MiniLM vectors, out of sample by five folds, at natural and at injected noise, and the published
probabilities of four test sets; then losses and margins while a probe is trained. For each
mixture: the share of the rows that it cuts, and which of these are wrong. Vectors are kept in
`--work`. Needs the extras `minilm` and `labels`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from harness import print_table

import tamis
from tamis.scoring.component_count import LEAST_GAIN, count_components
from tamis.scoring.mixture_fits import (
    PUBLISHED_SCALE,
    End,
    Kind,
    converged_mixtures,
    fit_mixtures,
    scaled_sample,
)

Float64s = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Float64s]
SIZES = (50, 200, 1000, 10_000)
GAINS = (0.0, 0.005, 0.01, 0.02, 0.03)
ONE: dict[str, Draw] = {
    "normal": lambda r, n: r.normal(size=n),
    "uniform": lambda r, n: r.random(n),
    "exponential": lambda r, n: r.exponential(size=n),
    "gamma 2": lambda r, n: r.gamma(2, size=n),
    "gamma 0.5": lambda r, n: r.gamma(0.5, size=n),
    "log-normal 0.5": lambda r, n: r.lognormal(0, 0.5, n),
    "log-normal 1": lambda r, n: r.lognormal(0, 1, n),
    "beta 2, 10": lambda r, n: r.beta(2, 10, n),
    "beta 5, 5": lambda r, n: r.beta(5, 5, n),
    "beta 0.5, 3": lambda r, n: r.beta(0.5, 3, n),
    "beta 10, 1": lambda r, n: r.beta(10, 1, n),
    "logistic": lambda r, n: r.logistic(size=n),
    "laplace": lambda r, n: r.laplace(size=n),
    "t of 4": lambda r, n: r.standard_t(4, size=n),
    "weibull 1.5": lambda r, n: r.weibull(1.5, n),
    "triangle": lambda r, n: r.triangular(0, 0.3, 1, n),
    "-log of beta 8, 1": lambda r, n: -np.log(r.beta(8, 1, n)),
    "-log of beta 5, 2": lambda r, n: -np.log(r.beta(5, 2, n)),
    "softplus of normal -3, 2": lambda r, n: np.log1p(np.exp(r.normal(-3, 2, n))),
    "half-normal": lambda r, n: abs(r.normal(size=n)),
}
PAIRS: dict[str, tuple[Draw, Draw]] = {
    "normals 2 apart": (lambda r, n: r.normal(size=n), lambda r, n: r.normal(2, 1, n)),
    "normals 3 apart": (lambda r, n: r.normal(size=n), lambda r, n: r.normal(3, 1, n)),
    "normals 4 apart": (lambda r, n: r.normal(size=n), lambda r, n: r.normal(4, 1, n)),
    "beta 2, 10 and 8, 3": (lambda r, n: r.beta(2, 10, n), lambda r, n: r.beta(8, 3, n)),
    "beta 2, 8 and 5, 3": (lambda r, n: r.beta(2, 8, n), lambda r, n: r.beta(5, 3, n)),
    "exponential 0.3, normal 3, 1": (
        lambda r, n: r.exponential(0.3, n),
        lambda r, n: abs(r.normal(3, 1, n)),
    ),
    "softplus of normals -3, 2 and 3, 1.5": (
        lambda r, n: np.log1p(np.exp(r.normal(-3, 2, n))),
        lambda r, n: np.log1p(np.exp(r.normal(3, 1.5, n))),
    ),
    "1 - beta 8, 1 and 1, 5": (lambda r, n: 1 - r.beta(8, 1, n), lambda r, n: 1 - r.beta(1, 5, n)),
}
SHARES = (0.05, 0.1, 0.2, 0.4)
BOOTSTRAP = 99
#: Larger samples take minutes each rule and shape.
BOOTSTRAP_MOST = 200


def mixed(pair: tuple[Draw, Draw], share: float) -> Draw:
    def draw(random: np.random.Generator, n: int) -> Float64s:
        return np.where(random.random(n) < share, pair[1](random, n), pair[0](random, n))

    return draw


TWO = {f"{name}, {share}": mixed(pair, share) for name, pair in PAIRS.items() for share in SHARES}


def gaussian_ratio(x: Float64s) -> tuple[float, float]:
    """Log-likelihood ratio of two Gaussians over one, and BIC's penalty for the difference."""
    sample = scaled_sample(x)
    one = -0.5 * len(x) * (np.log(2 * np.pi * sample.x.var()) + 1)
    found = converged_mixtures(sample, "gaussian")
    return float(found.log_likelihood[0] - one), 1.5 * np.log(len(x))


def verdicts(x: Float64s, random: np.random.Generator, bootstrap: bool) -> dict[str, bool]:
    """Whether each rule cuts."""
    ratio, penalty = gaussian_ratio(x)
    found = {"BIC, one Gaussian": ratio > penalty}
    if bootstrap:
        null = [gaussian_ratio(random.normal(size=len(x)))[0] for _ in range(BOOTSTRAP)]
        found["bootstrap, one Gaussian"] = sum(r >= ratio for r in null) < 0.05 * (BOOTSTRAP + 1)
    gain = count_components(scaled_sample(x)).gain[0]
    return found | {f"tamis, gain {least}": bool(gain > least) for least in GAINS}


def drawn_scores(draws: int) -> None:
    errors: dict[tuple[str, int], list[float]] = {}
    worst: dict[str, float] = {}
    for size in SIZES:
        for truth, sources in enumerate((ONE, TWO)):
            for number, (name, draw) in enumerate(sources.items()):
                random = np.random.default_rng([size, truth, number])
                found = [
                    verdicts(draw(random, size), random, bootstrap=size <= BOOTSTRAP_MOST)
                    for _ in range(draws)
                ]
                for rule in found[0]:
                    share = float(np.mean([one[rule] for one in found]))
                    pair = errors.setdefault((rule, size), [0.0, 0.0])
                    pair[truth] += (1 - share if truth else share) / len(sources)
                    if rule == f"tamis, gain {LEAST_GAIN}" and not truth and share > 0.05:
                        worst[f"{name}, {size:,}"] = share
    rules = list(dict.fromkeys(rule for rule, _ in errors))
    lines = []
    for rule in rules:
        cells = [errors.get((rule, size)) for size in SIZES]
        lines.append([rule, *("" if c is None else f"{c[0]:.3f} / {c[1]:.3f}" for c in cells)])
    print(f"false cuts / missed cuts, {draws} draws of {len(ONE)} and {len(TWO)} shapes\n")
    print_table(("rule", *(f"{size:,}" for size in SIZES)), lines, 1)
    print("\ncut falsely more than one time in twenty:", worst or "none", "\n")


class Judged(NamedTuple):
    """A set of labels with out-of-sample probabilities."""

    name: str
    probs: Float64s
    label: npt.NDArray[np.int64]
    wrong: npt.NDArray[np.bool_] | None


def injected(
    labels: npt.NDArray[np.int64], share: float, kind: str, classes: int
) -> npt.NDArray[np.int64]:
    """Labels of which a share is replaced: by any other class, or by the next one."""
    random = np.random.default_rng(1)
    hit = random.random(len(labels)) < share
    step = random.integers(1, classes, len(labels)) if kind == "symmetric" else 1
    return np.where(hit, (labels + step) % classes, labels)


def out_of_sample(vectors: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> Float64s:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = LogisticRegression(max_iter=200)
    found: Float64s = cross_val_predict(model, vectors, labels, cv=folds, method="predict_proba")
    return found


def vectors_of(texts: pl.Series, place: Path) -> npt.NDArray[Any]:
    if not place.exists():
        found = tamis.score("embedding", texts.to_frame("text"))
        np.save(place, np.stack(found["embedding"].to_numpy()))
    vectors: npt.NDArray[Any] = np.load(place)
    return vectors


def judged_sets(data: Path, work: Path) -> Iterator[Judged]:
    news = pl.read_parquet(data / "labels_noisyag_news.parquet").filter(pl.col("split") == "noisy")
    vectors = vectors_of(news["text"], work / "noisyag_noisy.npy")
    true = news["true_label"].to_numpy().astype(np.int64)
    human = news["human_label"].to_numpy().astype(np.int64)
    cases = [("NoisyAG, human labels", human), ("NoisyAG, true labels", true)]
    for kind in ("symmetric", "pair"):
        for share in (0.1, 0.2, 0.4):
            cases.append((f"true labels, {kind} {share:.0%}", injected(true, share, kind, 4)))
        for share in (0.1, 0.2, 0.4):
            cases.append((f"human labels, {kind} {share:.0%}", injected(human, share, kind, 4)))
    for name, label in cases:
        yield Judged(name, out_of_sample(vectors, label), label, label != true)
    intents = pl.read_parquet(data / "labels_clinc150.parquet").filter(pl.col("split") == "train")
    vectors = vectors_of(intents["text"], work / "clinc150_train.npy")
    true = np.unique(intents["label"].to_numpy(), return_inverse=True)[1]
    some = np.random.default_rng(0).permutation(len(true))[:6000]
    for share in (0.0, 0.1, 0.2, 0.4):
        label = injected(true[some], share, "symmetric", 150)
        name = f"CLINC150, symmetric {share:.0%}" if share else "CLINC150"
        yield Judged(name, out_of_sample(vectors[some], label), label, label != true[some])
    published = pl.read_parquet(data / "labels_cleanlab_pyx.parquet")
    for (name,), part in published.group_by("dataset", maintain_order=True):
        probs = np.array(part["pred_probs"].to_list())
        yield Judged(f"{name} (published)", probs, part["given_label"].to_numpy(), None)


def mixtures_cut(
    value: Float64s, end: End, kind: Kind, wrong: npt.NDArray[np.bool_] | None
) -> list[str]:
    sample = scaled_sample(value, scale=PUBLISHED_SCALE[kind])
    found = fit_mixtures(sample, kind)
    hit = found.posterior(value, end=end) > 0.5
    refused = not (count_components(sample).two[0] and found.apart()[0])
    cells = [f"{hit.mean():.1%}" + (" no" if refused else "")]
    if wrong is None or not wrong.any():
        return [*cells, ""]
    return [*cells, f"{wrong[hit].mean():.2f} / {hit[wrong].mean():.2f}" if hit.any() else ""]


def labelled_sets(data: Path, work: Path) -> None:
    lines = []
    for one in judged_sets(data, work):
        mine = one.probs[np.arange(len(one.label)), one.label]
        loss = -np.log(np.clip(mine, 1e-12, 1))
        cells = [one.name, "" if one.wrong is None else f"{one.wrong.mean():.1%}"]
        gain = [count_components(scaled_sample(v)).gain[0] for v in (loss, mine)]
        cells += mixtures_cut(loss, "high", "gaussian", one.wrong)
        cells += mixtures_cut(loss, "high", "beta", one.wrong)
        cells += mixtures_cut(mine, "low", "beta", one.wrong)
        lines.append([*cells, *(f"{g:.3f}" for g in gain)])
    words = ("loss, gaussian", "P / R", "loss, beta", "P / R", "probability, beta", "P / R")
    print_table(("labels", "wrong", *words, "gain, loss", "gain, prob."), lines, 1)


def training_sets(data: Path, work: Path) -> None:
    """Losses and margins that a probe leaves in training, at injected noise."""
    news = pl.read_parquet(data / "labels_noisyag_news.parquet").filter(pl.col("split") == "noisy")
    vectors = vectors_of(news["text"], work / "noisyag_noisy.npy")
    true = news["true_label"].to_numpy().astype(np.int64)
    kinds = {"id": news["id"], "vector": pl.Series(vectors.tolist(), dtype=pl.List(pl.Float32))}
    probe = {"operator": "probe", "embedding": "vector"}
    scores: dict[str, tuple[str, End]] = {
        "loss, generalised": ("gceloss", "high"),
        "loss, cross-entropy": ("celoss", "high"),
        "aum": ("aum", "low"),
    }
    lines = []
    for share in (0.0, 0.1, 0.2, 0.4):
        label = injected(true, share, "symmetric", 4) if share else true
        wrong = label != true
        place = work / "noisyag_train.parquet"
        pl.DataFrame({**kinds, "label": label, "wrong": wrong}).write_parquet(place)
        run = tamis.run(
            {
                "corpus": {"path": str(place), "roles": {"id": "id", "label": "label"}},
                "stages": [
                    {**probe, "name": "gce", "loss": "gce"},
                    {"operator": "training_loss", "dynamics": "gce", "name": "gceloss"},
                    {**probe, "name": "ce", "loss": "cross_entropy"},
                    {"operator": "training_loss", "dynamics": "ce", "name": "celoss"},
                    {"operator": "aum", "dynamics": "ce"},
                ],
                "workspace": str(work / "noisyag_train"),
            }
        )
        names = ", ".join(name for name, _ in scores.values())
        rows = tamis.sql(run, f"SELECT wrong, {names} FROM scores JOIN rows USING (row_id)")
        cells = [f"{wrong.mean():.1%}"]
        for name, end in scores.values():
            value = rows[name].to_numpy()
            cells += mixtures_cut(value, end, "gaussian", rows["wrong"].to_numpy())
            cells.append(f"{count_components(scaled_sample(value)).gain[0]:.3f}")
        lines.append(cells)
    header = [cell for name in scores for cell in (f"{name}, gaussian", "P / R", "gain")]
    print("\nNoisyAG, symmetric noise, in training\n")
    print_table(("wrong", *header), lines, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=20, help="of every shape and size; 0: none")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("bench-work"))
    arguments = parser.parse_args()
    if arguments.draws:
        drawn_scores(arguments.draws)
    if arguments.data:
        arguments.work.mkdir(parents=True, exist_ok=True)
        labelled_sets(arguments.data, arguments.work)
        training_sets(arguments.data, arguments.work)


if __name__ == "__main__":
    main()
