"""Taking rows from clusters in fixed proportions, as many as a budget allows."""

import numpy as np
import numpy.typing as npt

from tamis.storage.kernels import Int64s

Float64s = npt.NDArray[np.float64]


def places_within(cluster: npt.NDArray[np.integer], order: Int64s) -> Int64s:
    """For every row its place within its cluster, from 0, when rows come in an order.

    Example:
        >>> places_within(np.array([0, 1, 0, 1]), np.array([3, 2, 1, 0])).tolist()
        [1, 1, 0, 0]
    """
    by_cluster = order[np.argsort(cluster[order], kind="stable")]
    mine = cluster[by_cluster]
    begins = np.flatnonzero(np.r_[True, mine[1:] != mine[:-1]]) if len(mine) else by_cluster
    sizes = np.diff(np.r_[begins, len(mine)])
    place = np.empty(len(mine), np.int64)
    place[by_cluster] = np.arange(len(mine)) - np.repeat(begins, sizes)
    return place


def members_of(group: Int64s) -> list[Int64s]:
    """The rows of every group, ascending, in the order of the groups' first rows.

    Example:
        >>> [rows.tolist() for rows in members_of(np.array([7, 2, 7]))]
        [[0, 2], [1]]
    """
    order = np.argsort(group, kind="stable")
    cuts = np.flatnonzero(np.diff(group[order])) + 1
    parts = np.split(order, cuts) if len(order) else []
    return sorted(parts, key=lambda rows: int(rows[0]))


def turns(place: Int64s, share: Float64s) -> Float64s:
    """When every row's turn comes, if clusters take turns in proportion to their shares.

    Taking the rows with the lowest turns gives every cluster its share of any budget, as nearly as
    whole rows allow (the divisor method of Webster and Sainte-Laguë). A larger budget contains a
    smaller one, and what an exhausted cluster cannot give goes to the others in proportion.

    Args:
        place: of every row within its cluster.
        share: of every row's cluster, on any scale; the turn of a row without share never comes.

    Example:
        >>> turns(np.array([0, 1, 0, 0]), np.array([0.5, 0.5, 0.25, 0.0])).tolist()
        [1.0, 3.0, 2.0, inf]
    """
    turn: Float64s = np.full(len(place), np.inf)
    np.divide(place + 0.5, share, out=turn, where=share > 0)
    return turn
