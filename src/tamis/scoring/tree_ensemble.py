"""Predictions of a LightGBM model, quickly: every tree's leaf by a few bit masks.

A tree's leaves are numbered from left to right, a bit each. A split that a row fails, going right,
rules out the leaves on its left; what is left over after all of them has the row's leaf as its
lowest bit (QuickScorer: Lucchese et al. 2015). For every feature the masks of all trees are put
together beforehand, by the interval of thresholds that a value falls into, so that a row is as many
vector operations as there are features. The model stays LightGBM's own text.
"""

from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np

from tamis.scoring.mixture_runs import Floats, Ints
from tamis.storage.kernels import KERNEL, UInt64s

#: Most leaves of a tree.
MOST_LEAVES = 64
#: Fields of a tree in the order of LightGBM's text; every tree has all of them.
_FIELDS = (
    *("num_leaves", "num_cat", "split_feature", "threshold"),
    *("left_child", "right_child", "leaf_value"),
)
#: Multiplied by a power of two and shifted, gives each of them another place of the table.
_DE_BRUIJN = 0x03F79D71B4CB0A89
_PLACES = np.zeros(64, np.uint8)
for _bit in range(64):
    _PLACES[((_DE_BRUIJN << _bit) & (2**64 - 1)) >> 58] = _bit


@dataclass(frozen=True)
class TreeEnsemble:
    """A sum of regression trees.

    Attributes:
        thresholds: of all features, ascending within each; float64.
        edges: where a feature's thresholds begin and end: int64 [features + 1].
        masks: leaves not ruled out, by interval of a feature's values and tree: uint32, or uint64
            for trees of more than 32 leaves, [thresholds + features, trees].
        leaves: their values from left to right: float64 [trees, most leaves].
    """

    thresholds: Floats
    edges: Ints
    masks: UInt64s
    leaves: Floats

    def predict(self, rows: Floats) -> Floats:
        """Sums over trees, in the order of the trees as LightGBM's: float64 [n]."""
        return np.asarray(
            _predict(
                np.ascontiguousarray(rows, np.float64),
                self.thresholds,
                self.edges,
                self.masks,
                self.leaves,
                _PLACES,
            )
        )


@lru_cache(maxsize=16)
def ensemble_of(model: str, features: int) -> TreeEnsemble:
    """The trees of a LightGBM model in its text form; numerical splits only.

    Raises:
        ValueError: for a model with splits by category or trees of more than 64 leaves.
    """
    texts = _texts(model)
    counts, categories, feature, left, right = (
        np.fromstring(texts[name], np.int64, sep=" ")
        for name in ("num_leaves", "num_cat", "split_feature", "left_child", "right_child")
    )
    threshold, values = (
        np.fromstring(texts[name], np.float64, sep=" ") for name in ("threshold", "leaf_value")
    )
    if counts.max(initial=0) > MOST_LEAVES or categories.any():
        raise ValueError("trees of at most 64 leaves and numerical splits are read")
    tree = np.repeat(np.arange(len(counts)), counts - 1)
    mask, leaves = _leaves_on_the_left(counts, left, right, values)
    return _assembled(tree, feature, threshold, mask, leaves, features)


def _texts(model: str) -> dict[str, str]:
    """What is read of every tree, by field, all trees one after the other."""
    found: dict[str, list[str]] = {name: [] for name in _FIELDS}
    place = model.find(f"\n{_FIELDS[0]}=")
    while place >= 0:
        for name, texts in found.items():
            start = model.index(f"\n{name}=", place) + len(name) + 2
            place = model.index("\n", start)
            texts.append(model[start:place])
        place = model.find(f"\n{_FIELDS[0]}=", place)
    return {name: " ".join(texts) for name, texts in found.items()}


@numba.njit(**KERNEL)
def _leaves_on_the_left(counts, left, right, values):  # type: ignore[no-untyped-def]
    """For every node the bits of the leaves on its left; every tree's leaves from left to right."""
    most = counts.max()
    masks = np.zeros(len(left), np.uint64)
    leaves = np.zeros((len(counts), most))
    first = np.empty(most, np.int64)  # leaves found when a node is come to; -1 before
    stack = np.empty(2 * most + 1, np.int64)
    nodes = total = 0  # of the trees before
    for tree in range(len(counts)):
        first[:] = -1
        stack[0] = 0 if counts[tree] > 1 else ~0  # a tree without a split is its one leaf
        depth, found = 1, 0
        while depth:
            node = stack[depth - 1]
            if node < 0:
                leaves[tree, found] = values[total + ~node]
                found += 1
                depth -= 1
            elif first[node] < 0:
                first[node] = found
                stack[depth] = left[nodes + node]
                depth += 1
            else:
                for bit in range(first[node], found):
                    masks[nodes + node] |= np.uint64(1) << np.uint64(bit)
                stack[depth - 1] = right[nodes + node]
        nodes += counts[tree] - 1
        total += counts[tree]
    return masks, leaves


def _assembled(
    tree: Ints, feature: Ints, threshold: Floats, mask: UInt64s, leaves: Floats, features: int
) -> TreeEnsemble:
    """The masks of all splits, by feature and interval."""
    thresholds, edges, masks = [], [0], []
    bits = np.uint32 if leaves.shape[1] <= 32 else np.uint64
    mask = (~mask).astype(bits)
    for number in range(features):
        own = feature == number
        known, rank = np.unique(threshold[own], return_inverse=True)
        thresholds.append(known)
        edges.append(edges[-1] + len(known))
        part = np.full((len(known) + 1, len(leaves)), ~bits(0))
        # A value above r thresholds fails the splits at all of them.
        np.bitwise_and.at(part, (rank + 1, tree[own]), mask[own])
        masks.append(np.bitwise_and.accumulate(part, axis=0))
    return TreeEnsemble(np.concatenate(thresholds), np.array(edges), np.concatenate(masks), leaves)


@numba.njit(**KERNEL)
def _predict(rows, thresholds, edges, masks, leaves, places):  # type: ignore[no-untyped-def]
    # Unsigned indices and no slices in the loops over trees: they are most of the time.
    features, trees = np.uint64(len(edges) - 1), np.uint64(len(leaves))
    found = np.zeros(len(rows))
    alive = np.empty(len(leaves), masks.dtype)
    for row in range(np.uint64(len(rows))):
        for tree in range(trees):
            alive[tree] = masks[np.uint64(0), tree]  # all leaves: below every threshold
        for feature in range(features):
            low, high = edges[feature], edges[feature + np.uint64(1)]
            value = rows[row, feature]
            while low < high:  # thresholds below the value
                middle = (low + high) >> 1
                if thresholds[middle] < value:
                    low = middle + 1
                else:
                    high = middle
            if low == edges[feature]:
                continue  # below all of them: nothing is ruled out
            interval = np.uint64(low) + feature
            for tree in range(trees):
                alive[tree] &= masks[interval, tree]
        total = 0.0
        for tree in range(trees):
            bits = np.uint64(alive[tree])
            lowest = bits & (~bits + np.uint64(1))
            place = places[(lowest * np.uint64(_DE_BRUIJN)) >> np.uint64(58)]
            total += leaves[tree, np.uint64(place)]
        found[row] = total
    return found
