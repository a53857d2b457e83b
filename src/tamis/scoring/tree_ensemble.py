"""Predictions of a LightGBM model, quickly: every tree's leaf by a few bit masks.

A tree's leaves are numbered from left to right, a bit each. A split that a row fails, going right,
rules out the leaves on its left; what is left over after all of them has the row's leaf as its
lowest bit (QuickScorer: Lucchese et al. 2015). For every feature the masks of all trees are put
together beforehand, by the interval of thresholds that a value falls into, so that a row is as many
vector operations as there are features. The model stays LightGBM's own text.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from tamis.scoring.mixture_runs import Floats, Ints
from tamis.storage.kernels import KERNEL, UInt64s

#: Most leaves of a tree.
MOST_LEAVES = 64
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
        masks: leaves not ruled out, by interval of a feature's values and tree: uint64
            [thresholds + features, trees].
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
    counts = _values(model, "num_leaves", np.int64)
    if counts.max(initial=0) > MOST_LEAVES or _values(model, "num_cat", np.int64).any():
        raise ValueError("trees of at most 64 leaves and numerical splits are read")
    feature = _values(model, "split_feature", np.int64)
    threshold = _values(model, "threshold", np.float64)
    children = [_values(model, name, np.int64) for name in ("left_child", "right_child")]
    values = _values(model, "leaf_value", np.float64)
    leaves = np.zeros((len(counts), counts.max(initial=1)))
    mask = np.empty(len(feature), np.uint64)
    node = leaf = 0
    for tree, count in enumerate(counts):
        splits = slice(node, node + count - 1)
        order, mask[splits] = _leaves_on_the_left(*(child[splits] for child in children))
        leaves[tree, :count] = values[leaf : leaf + count][order]
        node, leaf = splits.stop, leaf + count
    return _assembled(
        np.repeat(np.arange(len(counts)), counts - 1), feature, threshold, mask, leaves, features
    )


def _values(model: str, field: str, kind: type) -> npt.NDArray[Any]:
    """A field's values of all trees, one after the other."""
    found = [rest.partition("\n")[0] for rest in model.split(f"\n{field}=")[1:]]
    return np.fromstring(" ".join(found), kind, sep=" ")


@numba.njit(**KERNEL)
def _leaves_on_the_left(left, right):  # type: ignore[no-untyped-def]
    """Leaves from left to right, and the bits of those on the left of every node."""
    count = len(left) + 1
    order = np.empty(count, np.int64)
    first = np.empty(len(left), np.int64)  # leaves found when a node is come to
    masks = np.zeros(len(left), np.uint64)
    stack = np.empty(2 * count + 1, np.int64)
    passed = np.zeros(len(left), np.bool_)
    stack[0] = 0 if len(left) else ~0  # a tree without a split is its one leaf
    depth, found = 1, 0
    while depth:
        node = stack[depth - 1]
        if node < 0:
            order[found] = ~node
            found += 1
            depth -= 1
        elif not passed[node]:
            passed[node] = True
            first[node] = found
            stack[depth] = left[node]
            depth += 1
        else:
            bits = np.uint64(0)
            for bit in range(first[node], found):
                bits |= np.uint64(1) << np.uint64(bit)
            masks[node] = bits
            stack[depth - 1] = right[node]
    return order, masks


def _assembled(
    tree: Ints, feature: Ints, threshold: Floats, mask: UInt64s, leaves: Floats, features: int
) -> TreeEnsemble:
    """The masks of all splits, by feature and interval."""
    thresholds, edges, masks = [], [0], []
    for number in range(features):
        own = feature == number
        known, rank = np.unique(threshold[own], return_inverse=True)
        thresholds.append(known)
        edges.append(edges[-1] + len(known))
        part = np.full((len(known) + 1, len(leaves)), ~np.uint64(0))
        # A value above r thresholds fails the splits at all of them.
        np.bitwise_and.at(part, (rank + 1, tree[own]), ~mask[own])
        masks.append(np.bitwise_and.accumulate(part, axis=0))
    return TreeEnsemble(np.concatenate(thresholds), np.array(edges), np.concatenate(masks), leaves)


@numba.njit(**KERNEL)
def _predict(rows, thresholds, edges, masks, leaves, places):  # type: ignore[no-untyped-def]
    features, trees = len(edges) - 1, len(leaves)
    found = np.zeros(len(rows))
    alive = np.empty(trees, np.uint64)
    for row in range(len(rows)):
        alive[:] = ~np.uint64(0)
        for feature in range(features):
            low, high = edges[feature], edges[feature + 1]
            value = rows[row, feature]
            while low < high:  # thresholds below the value
                middle = (low + high) >> 1
                if thresholds[middle] < value:
                    low = middle + 1
                else:
                    high = middle
            if low == edges[feature]:
                continue  # below all of them: nothing is ruled out
            part = masks[low + feature]
            for tree in range(trees):
                alive[tree] &= part[tree]
        total = 0.0
        for tree in range(trees):
            bits = alive[tree]
            lowest = bits & (~bits + np.uint64(1))
            place = places[(lowest * np.uint64(_DE_BRUIJN)) >> np.uint64(58)]
            total += leaves[tree, place]
        found[row] = total
    return found
