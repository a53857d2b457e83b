"""Intervals of fitted numbers that hold whatever the noise, for runs that come in groups.

The variance is the sandwich over groups, with residuals corrected for what the fit took from them
(CR2: Bell and McCaffrey 2002; of groups of one it is HC2), and Student's t has the degrees of
freedom of their Satterthwaite approximation, which is what makes intervals of few groups wide
enough (Imbens and Kolesar 2016). For Huber's loss scores stand for residuals, divided by the share
of runs that are not cut off (Huber 1981, section 7.6).
"""

from typing import NamedTuple

import numpy as np

from tamis.scoring.mixture_runs import Floats, Ints
from tamis.scoring.model_files import need_package

#: Groups that are looked at together.
_PORTION = 4096
#: Directions that the fit follows more closely than this leave nothing to learn the noise from.
_LEAST = 1e-3


class Spread(NamedTuple):
    """Standard error and degrees of freedom of every number: float64 [q] each."""

    error: Floats
    freedom: Floats

    def half_width(self, level: float) -> Floats:
        """Half of an interval: float64 [q]; NaN where nothing is known."""
        need_package("scipy", "an interval of coefficients", "mixtures")
        from scipy.stats import t

        return np.asarray(self.error * t.ppf((1 + level) / 2, self.freedom))


def spread(jacobian: Floats, score: Floats, group: Ints, contrast: Floats) -> Spread:
    """How far numbers that are linear in the parameters may be off.

    Args:
        jacobian: of predictions by parameters, float64 [n, p].
        score: residuals, or what stands for them, float64 [n].
        group: number of the group that a run belongs to, int64 [n].
        contrast: the numbers by parameter, float64 [q, p].

    Returns:
        NaN where there are no more groups than parameters, or the parameters cannot be told apart.

    Example:
        The error of a mean is that of the textbook, and so are its degrees of freedom.

        >>> values = np.array([1.0, 2.0, 4.0, 5.0])
        >>> one = np.ones((4, 1))
        >>> found = spread(one, values - values.mean(), np.arange(4), np.ones((1, 1)))
        >>> np.isclose(found.error[0], values.std(ddof=1) / 2), found.freedom.round(6).tolist()
        (np.True_, [3.0])
    """
    width, numbers = jacobian.shape[1], len(contrast)
    basis, triangle = np.linalg.qr(jacobian)
    pivots = np.abs(np.diag(triangle))
    if int(group.max()) + 1 <= width or pivots.min() <= 1e-10 * pivots.max():
        return Spread(np.full(numbers, np.nan), np.full(numbers, np.nan))
    #: How far a number moves with the residual of a run: [n, q].
    moves = basis @ np.linalg.solve(triangle.T, contrast.T)
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    ends = np.cumsum(counts)
    variance, trace, square = (np.zeros(numbers) for _ in range(3))
    cross = np.zeros((numbers, width, width))
    for size in np.unique(counts):
        starts = (ends - counts)[counts == size]
        for first in range(0, len(starts), _PORTION):
            # Runs of groups of one size: [m, size].
            runs = order[starts[first : first + _PORTION, None] + np.arange(size)]
            own = basis[runs]
            left, axes = np.linalg.eigh(np.eye(size) - own @ own.transpose(0, 2, 1))
            root = np.maximum(left, _LEAST) ** -0.5
            corrected = (axes * root[:, None]) @ axes.transpose(0, 2, 1) @ moves[runs]
            variance += (np.einsum("ms,msq->mq", score[runs], corrected) ** 2).sum(axis=0)
            length = (corrected**2).sum(axis=1)
            taken = own.transpose(0, 2, 1) @ corrected  # [m, p, q]
            rest = (taken**2).sum(axis=1)
            trace += (length - rest).sum(axis=0)
            square += (length**2 - 2 * length * rest).sum(axis=0)
            by_number = taken.transpose(2, 1, 0)
            cross += by_number @ by_number.transpose(0, 2, 1)
    square += (cross**2).sum(axis=(1, 2))
    return Spread(np.sqrt(variance), np.maximum(trace**2 / square, 1.0))
