"""Kernel mean matching: weights under which one set of vectors looks like another.

The mean of phi(x) in the feature space of a Gaussian kernel is a picture of a whole distribution.
Rows are weighed so that their weighted mean comes close to the target's; with double weighting the
target's rows are weighed too, so that those which no row resembles can be given up.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tamis.storage.kernels import in_threads

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
#: The matrix of kernel values between all vectors, times a vector.
Product = Callable[[Float64s], Float64s]

#: Rows of a block: their products are summed block by block, in order.
_BLOCK = 1 << 12
#: Landmarks' directions that explain less than this share of the kernel's trace are rounding.
_ROUNDING = 1e-7
#: Twice the largest eigenvalue of the kernel in the solver's units, at most: its trace is 2.
_LIPSCHITZ = 4.0
#: Steps between two looks at how far the distance has come down.
_CHECKED = 50
_BISECTIONS = 60


class DoubleWeights(NamedTuple):
    """Weights that bring two kernel means together.

    Attributes:
        beta: float64 ``(n,)``, of the rows, from 0 to B / sqrt(D).
        alpha: float64 ``(t,)``, of the target's rows, from 0 to 1.
        distance: ``|sum beta phi(x) / n - sum alpha phi(x') / t|`` in the feature space (MMD).
        before: the same with all weights 1.
        length: ``|sum alpha phi(x') / t|``; where the distance is no less, nothing is matched.
        iterations: steps taken.
        converged: whether the last steps hardly changed anything, or the distance is enough.
    """

    beta: Float64s
    alpha: Float64s
    distance: float
    before: float
    length: float
    iterations: int
    converged: bool


def median_distance(rows: npt.NDArray[np.floating]) -> float:
    """Median Euclidean distance between different rows; 1 where all rows are the same.

    The bandwidth of a Gaussian kernel by the median heuristic (Gretton et al. 2012, A kernel
    two-sample test, section 8). Pairs of equal rows are left out.

    Example:
        >>> median_distance(np.array([[0.0], [1.0], [1.0], [3.0]]))
        2.0
    """
    wide = np.asarray(rows, np.float64)
    square = _square_distances(wide, wide)[np.triu_indices(len(wide), 1)]
    apart = square[square > 1e-12 * square.max(initial=0.0)]
    return float(np.sqrt(np.median(apart))) if len(apart) else 1.0


def _square_distances(left: Float64s, right: Float64s) -> Float64s:
    found = left @ right.T
    found *= -2
    found += np.square(left).sum(axis=1)[:, None]
    found += np.square(right).sum(axis=1)
    return np.maximum(found, 0, out=found)


def gaussian(left: Float64s, right: Float64s, bandwidth: float) -> Float64s:
    """exp(-|x - y|^2 / (2 bandwidth^2)) of all pairs, ``(len(left), len(right))``.

    Example:
        >>> gaussian(np.zeros((1, 2)), np.array([[0.0, 0.0], [3.0, 4.0]]), 5.0).round(4).tolist()
        [[1.0, 0.6065]]
    """
    found = _square_distances(left, right)
    found *= -0.5 / bandwidth**2
    return np.exp(found, out=found)


def noise(target: npt.NDArray[np.floating], t: int, bandwidth: float) -> float:
    """How far the kernel mean of t rows lies from that of all rows of their kind, on average.

    The root mean square, sqrt((1 - E k(x, x')) / t) for a kernel with k(x, x) = 1; 0 for one row,
    which says nothing of others.

    Args:
        target: some of the rows, from which E k is estimated without bias.

    Example:
        >>> round(noise(np.array([[0.0], [1.0]]), 2, 1.0), 4)  # 1 - exp(-1 / 2) = 0.3935
        0.4435
    """
    wide = np.asarray(target, np.float64)
    pairs = len(wide) * (len(wide) - 1)
    if not pairs:
        return 0.0
    others = (gaussian(wide, wide, bandwidth).sum() - len(wide)) / pairs
    return float(np.sqrt(max(1.0 - others, 0.0) / t))


def exact_product(rows: Float32s, bandwidth: float) -> Product:
    """The whole matrix of kernel values: 8 bytes for every pair of rows."""
    wide = rows.astype(np.float64)
    kernel = gaussian(wide, wide, bandwidth)
    np.fill_diagonal(kernel, 1.0)

    def product(vector: Float64s) -> Float64s:
        found: Float64s = kernel @ vector
        return found

    return product


def landmark_product(
    rows: Float32s, landmarks: Float32s, bandwidth: float, workers: int = 1
) -> tuple[Product, float]:
    """Kernel values as far as landmarks explain them, and an exact diagonal.

    K is taken as Q + diag(K - Q), where Q = K_xm K_mm^+ K_mx is the kernel between projections of
    phi(x) on what the landmarks' own phi span (Nystroem, Williams and Seeger 2001); what lies
    outside is taken as different for every row (Snelson and Ghahramani 2006). Without the diagonal
    all weight could go to few rows at no cost.

    Returns:
        The product, and the share of the kernel's trace that landmarks do not explain, 0 to 1.
    """
    some = landmarks.astype(np.float64)
    value, vector = np.linalg.eigh(gaussian(some, some, bandwidth))
    used = value > _ROUNDING * len(some)
    whiten = vector[:, used] / np.sqrt(value[used])
    features = np.empty((len(rows), whiten.shape[1]), np.float32)
    blocks = [slice(begin, begin + _BLOCK) for begin in range(0, len(rows), _BLOCK)]

    def fill(block: slice) -> Float64s:
        found = gaussian(rows[block].astype(np.float64), some, bandwidth) @ whiten
        features[block] = found
        outside: Float64s = np.maximum(1.0 - np.square(found).sum(axis=1), 0.0)
        return outside

    own = np.concatenate(in_threads(fill, blocks, workers))

    def product(vector: Float64s) -> Float64s:
        narrow = vector.astype(np.float32)
        parts = in_threads(lambda block: narrow[block] @ features[block], blocks, workers)
        mean = np.sum(parts, axis=0, dtype=np.float64).astype(np.float32)
        found = in_threads(lambda block: features[block] @ mean, blocks, workers)
        explained: Float64s = np.concatenate(found) + own * vector
        return explained

    return product, float(own.mean())


def double_weights(
    product: Product,
    n: int,
    t: int,
    *,
    d: float = 1.0,
    bound: float = 1000.0,
    enough: float = 0.0,
    tolerance: float = 1e-3,
    iterations: int = 2000,
) -> DoubleWeights:
    """Weights of n rows and t rows of a target whose weighted kernel means are closest.

    Minimises ``|sum_i beta_i phi(x_i) / n - sum_j alpha_j phi(x'_j) / t|^2`` subject to
    0 <= beta <= bound / sqrt(d), 0 <= alpha <= 1, |alpha - 1| <= (1 - 1 / sqrt(d)) sqrt(t), and
    |mean(beta) - mean(alpha)| <= 1 - 1 / sqrt(n). With d = 1 all alpha are 1, which is kernel mean
    matching (Huang et al. 2007); the larger d, the more of the target may be given up.

    Projected gradients with Nesterov's momentum from all weights 1, beginning anew whenever the
    objective grows (Beck and Teboulle 2009; O'Donoghue and Candes 2015). Where several weights are
    as good it ends near those it began with.

    Args:
        product: the kernel of the n + t vectors, rows first, times a vector.
        bound: of beta, times sqrt(d); at least sqrt(d), so that a weight of 1 is allowed.
        enough: done once the distance is down to this, times the root mean square of alpha: what
            the target's mean may be off, as that of a sample; see `noise`.
        tolerance: done once 50 steps lower the distance by less than this share.

    Raises:
        ValueError: if the bound is less than sqrt(d): all weights 1, where it begins, are then not
            allowed, and there may be none that are.

    Source:
        Segovia-Martin et al. 2023, Double-weighting for covariate shift adaptation. The authors'
        public code stacks beta and +alpha in places; the distance of the two means needs the minus.

    Example:
        >>> rows = np.array([[0.0], [0.0], [4.0], [4.0], [0.0], [4.0], [4.0], [4.0]], np.float32)
        >>> found = double_weights(exact_product(rows, 1.0), 4, 4, tolerance=1e-9)
        >>> found.beta.round(3).tolist(), round(found.before, 3), round(found.distance, 3)
        ([0.5, 0.5, 1.5, 1.5], 0.353, 0.0)
    """
    if bound < d**0.5:
        raise ValueError(f"the bound is {bound:g}, expected at least sqrt(d) = {d**0.5:g}")
    region = _Region(n, t, d, bound)
    x = np.r_[np.full(n, n**-0.5), np.full(t, t**-0.5)]  # weights over square roots of counts
    sign = x * np.r_[np.ones(n), -np.ones(t)]
    kx = product(sign * x)
    before = value = float(sign * x @ kx)
    ahead, k_ahead = x, kx  # where momentum leads, and its product: products are linear
    pace, mark, done, converged = 1.0, value, 0, False
    while done < iterations and not converged:
        done += 1
        to = region.nearest(ahead - (2 / _LIPSCHITZ) * sign * k_ahead)
        k_to = product(sign * to)
        lower = float(sign * to @ k_to)
        if lower > value:
            if ahead is x:  # not even without momentum: all that is left is rounding
                converged = True
                break
            ahead, k_ahead, pace = x, kx, 1.0
            continue
        following = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        push = (pace - 1) / following
        ahead, k_ahead = to + push * (to - x), k_to + push * (k_to - kx)
        x, kx, value, pace = to, k_to, lower, following
        converged = value <= enough**2 * float(np.square(x[n:]).sum())
        if done % _CHECKED == 0:
            converged |= value >= (1 - tolerance) ** 2 * mark
            mark = value
    theirs = sign * np.r_[np.zeros(n), x[n:]]
    return DoubleWeights(
        beta=x[:n] * n**0.5,
        alpha=x[n:] * t**0.5,
        distance=max(value, 0.0) ** 0.5,
        before=max(before, 0.0) ** 0.5,
        length=max(float(theirs @ product(theirs)), 0.0) ** 0.5,
        iterations=done,
        converged=converged,
    )


class _Region:
    """The weights that are allowed, beta over sqrt(n) and alpha over sqrt(t) in one vector."""

    def __init__(self, n: int, t: int, d: float, bound: float) -> None:
        self.n, self.t = n, t
        self.most = bound / d**0.5
        self.radius = (1 - d**-0.5) * t**0.5
        self.gap = 1 - n**-0.5

    def nearest(self, point: Float64s) -> Float64s:
        """The allowed point closest to another (Euclidean)."""
        beta, alpha = point[: self.n] * self.n**0.5, point[self.n :] * self.t**0.5
        found = self._apart(beta, alpha, 0.0)
        excess = found[0].mean() - found[1].mean()
        if abs(excess) > self.gap:
            found = self._pulled(beta, alpha, np.sign(excess))
        return np.concatenate([found[0] / self.n**0.5, found[1] / self.t**0.5])

    def _pulled(self, beta: Float64s, alpha: Float64s, side: float) -> tuple[Float64s, Float64s]:
        """Nearest where the means differ by no more than the gap: beta is shifted by the multiplier
        of that limit, and alpha against it, as far as it takes (by bisection)."""

        def over(shift: float) -> bool:
            found = self._apart(beta, alpha, -side * shift)
            return bool(side * (found[0].mean() - found[1].mean()) > self.gap)

        low, high = 0.0, 1.0
        while over(high):
            high *= 2
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if over(middle) else (low, middle)
        return self._apart(beta, alpha, -side * high)

    def _apart(self, beta: Float64s, alpha: Float64s, shift: float) -> tuple[Float64s, Float64s]:
        """Each nearest by itself, after a shift of beta up and of alpha down."""
        taken = _in_ball(1 - (alpha - shift), self.radius)
        return np.clip(beta + shift, 0, self.most), 1 - taken


def _in_ball(point: Float64s, radius: float) -> Float64s:
    """The nearest point from 0 to 1 that is no longer than a radius.

    It is clip(s * point, 0, 1) for the s at which the length is the radius. With the k largest at 1
    that s is known; k is the first at which all others stay below.
    """
    found: Float64s = np.clip(point, 0, 1)
    if found @ found <= radius**2:
        return found
    down = np.sort(point[point > 0])[::-1]
    rest = np.cumsum(np.square(down[::-1]))[::-1]
    scale = np.sqrt(np.maximum(radius**2 - np.arange(len(down)), 0) / rest)
    found = np.clip(point * scale[np.argmax(down * scale <= 1)], 0, 1)
    return found
