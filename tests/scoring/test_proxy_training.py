"""Small runs: what they are trained on, and what they learn."""

import math
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tamis.scoring.proxy_training import (
    ProxySettings,
    Windows,
    check_run,
    drawn_windows,
    sequence_domains,
    train_proxy,
)
from tamis.storage.errors import RunError, UserError
from tamis.storage.mixture_plan import MixturePlan
from tamis.storage.token_shards import TokenShards

from .proxy_tools import write_tokens

SMALL = {"context": 8, "batch": 4, "width": 16, "layers": 1, "heads": 2, "hidden": 24}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    """Domains that count upwards, downwards, and not at all."""
    up = np.tile(np.arange(1, 8), 100)
    noise = np.random.default_rng(0).integers(1, 16, 700)
    there = {"up": up, "down": up[::-1], "noise": noise}
    return write_tokens(tmp_path_factory.mktemp("tokens") / "t", there)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any),
    st.integers(1, 400),
)
def test_domains_are_drawn_within_one_sequence_of_their_proportions(
    parts: list[int], sequences: int
) -> None:
    whole = {f"d{i}": part / sum(parts) for i, part in enumerate(parts)}
    order, names = sequence_domains(MixturePlan.of(whole), sequences)
    drawn = np.cumsum(order[:, None] == np.arange(len(names)), axis=0)
    wanted = np.arange(1, sequences + 1)[:, None] * [whole[name] for name in names]
    assert len(order) == sequences
    assert (np.abs(drawn - wanted) < 1 + 1e-6).all()
    assert all(drawn[-1][i] == 0 for i, name in enumerate(names) if whole[name] == 0)


def test_phases_follow_one_another() -> None:
    plan = MixturePlan.of({"a": 1.0, "b": 0.0}, {"a": 0.25, "b": 0.75}, shares=(1, 3))
    order, names = sequence_domains(plan, 40)
    assert names == ("a", "b")
    assert order[:10].sum() == 0
    assert order[10:].sum() == 22 or order[10:].sum() == 23
    turned = MixturePlan.of({"b": 0.0, "a": 1.0}, {"b": 0.75, "a": 0.25}, shares=(1, 3))
    assert np.array_equal(sequence_domains(turned, 40)[0], order)


def test_windows_come_once_an_epoch_and_do_not_overlap() -> None:
    seen = drawn_windows(7, 17, seed=3, name="web")
    for epoch in (seen[:7], seen[7:14]):
        assert sorted(epoch) == list(range(7))
    assert len(set(seen[14:])) == 3
    assert np.array_equal(drawn_windows(7, 5, seed=3, name="web"), seen[:5])
    assert not np.array_equal(drawn_windows(70, 70, 3, "web"), drawn_windows(70, 70, 4, "web"))
    assert not np.array_equal(drawn_windows(70, 70, 3, "web"), drawn_windows(70, 70, 3, "code"))
    windows = Windows(np.arange(10, dtype=np.uint16), 3, "web")
    assert len(windows) == 3
    assert windows.take(np.array([0, 2])).tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]


def test_a_run_learns_what_it_is_trained_on(tokens: TokenShards) -> None:
    settings = ProxySettings(**SMALL, steps=60, rate=0.02, weight_decay=0.0)
    found = train_proxy(tokens, {"up": 1.0}, settings)
    assert found.losses["up"] < 0.2
    assert found.losses["down"] > 3
    assert found.tokens_seen == {"up": 60 * 4 * 8}
    assert found.epochs["up"] == 240 / ((700 - 1) // 8)
    assert [point["step"] for point in found.curve] == [60]
    mixed = train_proxy(tokens, {"up": 0.5, "down": 0.0, "noise": 0.5}, settings)
    assert found.losses["up"] < mixed.losses["up"] < 2
    assert mixed.losses["noise"] < found.losses["noise"]
    assert mixed.tokens_seen == {"down": 0, "noise": 960, "up": 960}


def test_losses_are_in_nats_a_token(tokens: TokenShards) -> None:
    still = train_proxy(tokens, {"up": 1.0}, ProxySettings(**SMALL, steps=1, rate=1e-12))
    # Bits would be 4. A model that knows nothing is a little off the 16 tokens being alike.
    assert all(abs(loss - math.log(16)) < 0.5 for loss in still.losses.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_again_is_the_same_to_the_bit(tokens: TokenShards, precision: str) -> None:
    settings = ProxySettings(**SMALL, steps=12, curve=5, precision=precision)
    mixture = {"up": 0.3, "noise": 0.7}
    first = train_proxy(tokens, mixture, settings)
    again = train_proxy(tokens, dict(reversed(mixture.items())), settings)
    assert first.model_copy(update={"seconds": 0}) == again.model_copy(update={"seconds": 0})
    assert [point["step"] for point in first.curve] == [5, 10, 12]
    assert first.curve[-1]["losses"] == first.losses
    other = train_proxy(tokens, mixture, settings.model_copy(update={"seed": 1}))
    assert other.losses != first.losses


@given(
    there=st.integers(50, 3000),
    part=st.floats(0.01, 1),
    share=st.floats(0.05, 0.95),
    epochs=st.floats(1, 5),
)
def test_a_mixture_at_the_limit_is_allowed(
    there: int, part: float, share: float, epochs: float
) -> None:
    settings = ProxySettings(**SMALL, epochs=epochs, steps=1)
    limit = epochs * there / settings.context
    steps = math.floor(limit / part / settings.batch)
    assume(steps > 0)
    settings = settings.model_copy(update={"steps": steps})
    most = min(1.0, limit / settings.sequences)
    whole = {"up": most, "down": 1 - most}
    tokens = _Tokens({"up": there, "down": 10**9})
    for plan in (
        MixturePlan.of(whole),
        MixturePlan.of(whole, whole, whole, shares=(share, 1, share)),
    ):
        check_run(cast(TokenShards, tokens), plan, settings)


class _Tokens:
    """Numbers of tokens, as a run is checked against them."""

    def __init__(self, there: dict[str, int]) -> None:
        self.there, self.domains, self.folder = there, tuple(there), Path("tokens")

    def train_tokens(self, domain: str) -> int:
        return self.there[domain]

    def read(self, domain: str, split: str) -> range:
        return range(self.there[domain])


def test_what_cannot_be_trained_is_refused(tokens: TokenShards, tmp_path: Path) -> None:
    settings = ProxySettings(**SMALL, steps=100)
    with pytest.raises(UserError, match=r"'web', which the tokens lack; there: down, noise, up"):
        train_proxy(tokens, {"web": 1.0}, settings)
    with pytest.raises(UserError, match=r"'up' would be seen 4\.57 times.*--epochs"):
        train_proxy(tokens, {"up": 1.0}, settings)
    short = write_tokens(tmp_path / "t", {"up": np.arange(8)})
    with pytest.raises(UserError, match=r"'up' has 8 tokens \(train\), fewer than a window of 8"):
        train_proxy(short, {"up": 1.0}, settings)
    with pytest.raises(RunError, match=r"training loss is \w+ at step \d+.*lower --rate"):
        train_proxy(tokens, {"up": 1.0}, settings.model_copy(update={"rate": 1e30, "steps": 50}))
    with pytest.raises(ValidationError, match="multiple of"):
        ProxySettings(width=30, heads=4)
