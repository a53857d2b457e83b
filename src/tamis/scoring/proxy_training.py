"""Small models trained on mixtures of domains: what laws of mixtures are fitted to.

The same tokens, mixture, settings and seed give the same losses to the bit on one machine. Runs of
one seed share their initial weights and, domain by domain, the order of their windows, so that
they differ by their mixtures more than by chance.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from numba import njit
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from tamis.scoring.proxy_model import ProxyModel
from tamis.storage.errors import RunError, UserError
from tamis.storage.kernels import KERNEL, Int64s
from tamis.storage.mixture_plan import MixturePlan
from tamis.storage.token_shards import Split, Tokens, TokenShards

#: What a run is trained by; another number makes other losses.
VERSION = 2
#: Shapes by name. `1m` is RegMix's 1M model (2 layers, 8 heads, 256, 512, rate 4e-4; its public
#: configuration), which counts no embedding; the others are ours and unconfirmed.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 64, "layers": 2, "heads": 4, "hidden": 192},
    "small": {"width": 128, "layers": 4, "heads": 4, "hidden": 384},
    "1m": {"width": 256, "layers": 2, "heads": 8, "hidden": 512, "rate": 4e-4},
}
#: Steps between two looks at the loss on a device that must be waited for.
_LOOK = 50


class ProxySettings(BaseModel):
    """How a proxy is trained. Defaults are ours for two cores, and unconfirmed.

    RegMix's: 1000 steps of 512 sequences of 2048 tokens, rate 4e-4, size `1m`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=500, ge=1, description="of the optimiser")
    batch: int = Field(default=16, ge=1, description="sequences a step")
    context: int = Field(default=128, ge=2, description="tokens a sequence")
    width: int = Field(default=64, ge=2, description="of the residual stream")
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    hidden: int = Field(default=192, ge=1, description="width of the SwiGLU layer")
    rate: float = Field(default=4e-3, gt=0, description="highest learning rate")
    final_rate: float = Field(default=0.1, ge=0, le=1, description="share of it that is left last")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(default=0.1, ge=0, description="of matrices")
    clip: float = Field(default=1.0, gt=0, description="norm of the gradient at most")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of weights and order of the data")
    epochs: float = Field(
        default=4,
        gt=0,
        description="how often a domain's tokens may be seen at most, sequences rounded",
    )
    validation_tokens: int = Field(default=16384, ge=1, description="measured on at most, a domain")
    curve: int = Field(default=0, ge=0, description="measure every so many steps; 0: at the end")
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of matrix products in training; losses are measured in float32",
    )

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is no multiple of 2 * {self.heads} heads")
        return self

    @property
    def sequences(self) -> int:
        """Sequences of the whole run."""
        return self.steps * self.batch


class ProxyRun(BaseModel):
    """A finished run.

    Attributes:
        losses: nats a token on the validation windows, by domain.
        tokens_seen: trained on, by domain of the mixture.
        epochs: how often the training windows of a domain were seen.
        parameters: weights.
        curve: losses at earlier steps, and the last; each with its ``step``.
        training_loss: mean of the last twentieth of the steps.
        seconds: wall time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    losses: dict[str, float]
    tokens_seen: dict[str, int]
    epochs: dict[str, float]
    parameters: int
    curve: list[dict[str, Any]]
    training_loss: float
    seconds: float


def train_proxy(
    tokens: TokenShards,
    phases: MixturePlan | Mapping[str, float],
    settings: ProxySettings | None = None,
) -> ProxyRun:
    """Train a model on a mixture, or on several one after the other, and measure all domains.

    The learning rate rises over the warm-up and falls by a cosine; AdamW (0.9, 0.95).

    Args:
        tokens: see `TokenShards.open`.
        phases: a plan, or proportions by domain; domains of `tokens` that it lacks have none.

    Raises:
        UserError: if the plan names a domain that `tokens` has not, a domain is too short for a
            window, or one would be seen more often than `settings.epochs`.
        RunError: if the loss is no number any more.
    """
    settings = settings or ProxySettings()
    plan = phases if isinstance(phases, MixturePlan) else MixturePlan.of(phases)
    begun = time.perf_counter()
    order, names, windows, drawn = check_run(tokens, plan, settings)
    batches = _batches(order, names, windows, settings)
    held_out = {n: _held_out(tokens, n, settings) for n in tokens.domains}
    with _one_thread(settings.device):
        model = ProxyModel(
            vocabulary=tokens.manifest.vocabulary,
            context=settings.context,
            seed=settings.seed,
            **{key: getattr(settings, key) for key in ("width", "layers", "heads", "hidden")},
        ).to(settings.device)
        curve, training_loss = _train(model, batches, held_out, settings)
    return ProxyRun(
        losses=curve[-1]["losses"],
        tokens_seen={name: count * settings.context for name, count in drawn.items()},
        epochs={name: count / len(windows[name]) for name, count in drawn.items()},
        parameters=model.parameter_count,
        curve=curve,
        training_loss=training_loss,
        seconds=time.perf_counter() - begun,
    )


class Planned(NamedTuple):
    """What a run will be trained on.

    Attributes:
        order: int64 [sequences], the domain of each.
        names: of the domains.
        windows: of every domain.
        drawn: sequences of every domain.
    """

    order: Int64s
    names: tuple[str, ...]
    windows: dict[str, "Windows"]
    drawn: dict[str, int]


def check_run(tokens: TokenShards, plan: MixturePlan, settings: ProxySettings) -> Planned:
    """What a run will be trained on.

    Raises:
        UserError: as `train_proxy`.
    """
    for name in plan.domains:
        if name not in tokens.domains:
            raise UserError(
                f"the mixture has the domain {name!r}, which the tokens lack",
                where=str(tokens.folder),
                mend=f"there: {', '.join(tokens.domains)}; tokenise it, or leave it out",
            )
    order, names = sequence_domains(plan, settings.sequences)
    windows = {name: Windows(tokens.read(name, "train"), settings.context, name) for name in names}
    counts = np.bincount(order, minlength=len(names)).tolist()
    drawn = dict(zip(names, counts, strict=True))
    for name, count in drawn.items():
        # The limit is on tokens: their last window is not whole. Sequences are, and come within one
        # of a proportion in every phase, whose two ends are rounded to whole sequences as well.
        rounding = 2 * len(plan.phases) - 1
        there = tokens.train_tokens(name)
        if (count - rounding) * settings.context > settings.epochs * there:
            raise UserError(
                f"domain {name!r} would be seen {count * settings.context / there:.2f} times: "
                f"{count:,} sequences of {settings.context:,} tokens from {there:,}; at most "
                f"{settings.epochs:g} are allowed",
                mend="a lower proportion, fewer steps, or more --epochs",
            )
    return Planned(order, names, windows, drawn)


class Windows:
    """The tokens of a domain in windows of a context's length and the token that follows.

    Args:
        tokens: one after the other.
        context: tokens of a window.
        name: of the domain, for errors.
        split: where they are from, for errors.

    Raises:
        UserError: if there is not one window.
    """

    def __init__(self, tokens: Tokens, context: int, name: str, split: Split = "train") -> None:
        self._tokens, self._context = tokens, context
        self._count = (len(tokens) - 1) // context
        if self._count < 1:
            raise UserError(
                f"domain {name!r} has {len(tokens):,} tokens ({split}), fewer than a window of "
                f"{context} and the token after it",
                mend="a shorter --context, or a larger share by `tamis mix tokenise --validation`",
            )

    def __len__(self) -> int:
        return self._count

    def take(self, places: Int64s) -> npt.NDArray[np.int64]:
        """Some windows, int64 [windows, context + 1]."""
        inside = places[:, None] * self._context + np.arange(self._context + 1)
        found: npt.NDArray[np.int64] = self._tokens[inside].astype(np.int64)
        return found


def drawn_windows(count: int, wanted: int, seed: int, name: str) -> Int64s:
    """Windows of a domain in the order they are seen: all once, shuffled, then all again.

    It depends on the domain's name and the seed only, not on other domains.

    Example:
        >>> drawn_windows(3, 5, seed=0, name="web").tolist()
        [0, 2, 1, 2, 0]
    """
    random = np.random.default_rng([seed, xxhash.xxh3_64_intdigest(name.encode())])
    epochs = -(-wanted // count)
    if not epochs:
        return np.zeros(0, np.int64)
    return np.concatenate([random.permutation(count) for _ in range(epochs)])[:wanted]


def sequence_domains(plan: MixturePlan, sequences: int) -> tuple[Int64s, tuple[str, ...]]:
    """The domain of every sequence of a run.

    In every phase, after any number of its sequences, a domain has been drawn within one of its
    proportion of them (Tijdeman 1980, The chairman assignment problem).

    Returns:
        int64 [sequences], places among the names, and the names of the plan's domains, sorted.

    Example:
        >>> order, names = sequence_domains(MixturePlan.of({"web": 0.75, "code": 0.25}), 8)
        >>> [names[place] for place in order]
        ['web', 'code', 'web', 'web', 'web', 'code', 'web', 'web']
    """
    shares = np.cumsum([phase.share for phase in plan.phases])
    edges = np.concatenate([[0], np.rint(shares / shares[-1] * sequences)]).astype(np.int64)
    names = tuple(sorted(plan.domains))
    parts = []
    for phase, first, after in zip(plan.phases, edges[:-1], edges[1:], strict=True):
        proportions = np.array([phase.mixture[name] for name in names])
        parts.append(_chairmen(proportions, int(after - first)))
    return np.concatenate(parts), names


@njit(**KERNEL)
def _chairmen(proportions, sequences):  # type: ignore[no-untyped-def]
    """Tijdeman's rule: of those that may be drawn, the one whose time runs out first."""
    found = np.zeros(sequences, np.int64)
    counts = np.zeros(len(proportions))
    several = max(2, int((proportions > 0).sum()))
    least = 1.0 / (2 * several - 2)
    for t in range(sequences):
        best, soonest = -1, np.inf
        for i in range(len(proportions)):
            owed = proportions[i] * (t + 1) - counts[i]
            # A rounding error must not keep the one domain that is due from being drawn.
            if proportions[i] > 0 and owed >= least - 1e-9:
                left = (1 - least - owed) / proportions[i]
                if left < soonest:
                    best, soonest = i, left
        found[t] = best
        counts[best] += 1
    return found


def _batches(
    order: Int64s, names: tuple[str, ...], windows: Mapping[str, Windows], settings: ProxySettings
) -> Iterator[Tensor]:
    """The sequences of every step, int64 [batch, context + 1]."""
    places = np.empty(len(order), np.int64)
    for number, name in enumerate(names):
        mine = order == number
        places[mine] = drawn_windows(len(windows[name]), int(mine.sum()), settings.seed, name)
    for begin in range(0, len(order), settings.batch):
        here = slice(begin, begin + settings.batch)
        rows = np.empty((settings.batch, settings.context + 1), np.int64)
        for number in np.unique(order[here]):
            mine = order[here] == number
            rows[mine] = windows[names[number]].take(places[here][mine])
        yield torch.from_numpy(rows)


def _held_out(tokens: TokenShards, name: str, settings: ProxySettings) -> Tensor:
    """Windows that a domain's loss is measured on, evenly spread: int64 [windows, context + 1]."""
    windows = Windows(tokens.read(name, "validation"), settings.context, name, "validation")
    count = min(len(windows), -(-settings.validation_tokens // settings.context))
    return torch.from_numpy(windows.take(np.arange(count) * len(windows) // count))


def _train(
    model: ProxyModel,
    batches: Iterator[Tensor],
    held_out: Mapping[str, Tensor],
    settings: ProxySettings,
) -> tuple[list[dict[str, Any]], float]:
    """Train; gives losses by domain at some steps and at the last, and that of training."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(
        groups,
        lr=settings.rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    kind: torch.dtype = getattr(torch, settings.precision)
    seen = torch.zeros(settings.steps, device=settings.device)
    curve = []
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * _rate(step, settings)
        rows = batch.to(settings.device)
        loss = model.mean_loss(rows[:, :-1], rows[:, 1:], kind)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimiser.step()
        seen[step] = loss.detach()
        done = step + 1
        last = done == settings.steps
        if last or done % _LOOK == 0:
            _must_be_finite(seen[:done])
        if last or (settings.curve and done % settings.curve == 0):
            losses = {name: _measure(model, rows, settings) for name, rows in held_out.items()}
            curve.append({"step": done, "losses": losses})
    return curve, float(seen[-max(1, settings.steps // 20) :].mean())


def _rate(step: int, settings: ProxySettings) -> float:
    """Share of the highest rate at a step: a line up, then half a cosine down."""
    rising = settings.warmup * settings.steps
    if step < rising:
        return (step + 1) / (math.floor(rising) + 1)
    gone = (step - rising) / max(1.0, settings.steps - rising)
    return settings.final_rate + (1 - settings.final_rate) * (1 + math.cos(math.pi * gone)) / 2


def _must_be_finite(seen: Tensor) -> None:
    wrong = torch.nonzero(~torch.isfinite(seen))
    if len(wrong):
        raise RunError(
            f"the training loss is {float(seen[wrong[0]]):g} at step {int(wrong[0]) + 1}",
            mend="a lower --rate, or a longer warm-up",
        )


def _measure(model: ProxyModel, rows: Tensor, settings: ProxySettings) -> float:
    """Mean loss of some windows in nats a token, summed in float64."""
    total = 0.0
    for begin in range(0, len(rows), settings.batch):
        some = rows[begin : begin + settings.batch].to(settings.device)
        total += float(model.losses(some[:, :-1], some[:, 1:]).double().sum())
    return total / (len(rows) * settings.context)


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """A processor's cores are for runs beside each other; sums keep their order."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
