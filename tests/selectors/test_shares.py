"""Turns against the quotas of Webster's method, computed the slow way."""

import numpy as np
import pytest

from tamis.selectors.shares import places_within, turns


def webster(share: list[float], size: list[int], seats: int) -> list[int]:
    """Give one seat after another to the cluster with the highest share / (seats + 1/2)."""
    given = [0] * len(share)
    for _ in range(seats):
        open_ones = [c for c in range(len(share)) if given[c] < size[c] and share[c] > 0]
        best = max(open_ones, key=lambda c: share[c] / (given[c] + 0.5))
        given[best] += 1
    return given


@pytest.mark.parametrize("seed", range(5))
def test_clusters_get_what_webster_gives_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = random.integers(1, 40, 7).tolist()
    share = random.random(7)
    share[2] = 0
    cluster = random.permutation(np.repeat(np.arange(7), size))
    place = places_within(cluster, random.permutation(len(cluster)))
    turn = turns(place, share[cluster])
    before: set[int] = set()
    for seats in (0, 1, 5, 20, int(np.isfinite(turn).sum())):
        taken = np.argsort(turn, kind="stable")[:seats]
        assert before <= set(taken.tolist()), "a larger budget does not contain the smaller"
        before = set(taken.tolist())
        counts = np.bincount(cluster[taken], minlength=7).tolist()
        assert counts == webster(share.tolist(), size, seats)
    assert np.isinf(turn[cluster == 2]).all()


def test_no_rows() -> None:
    none = np.zeros(0, np.int64)
    assert len(turns(places_within(none, none), np.zeros(0))) == 0
