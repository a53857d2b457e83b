"""Drawing so much of every domain: its rows in a fixed order, again and again.

The rows of a domain lie one after the other in an order of their own, each as long as its size, and
behind the last the first comes again. What is drawn is the beginning of that line, so that no row
comes a second time before every row has come once, and a larger amount contains a smaller one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tamis.storage.kernels import Int64s

Float64s = npt.NDArray[np.float64]
Int32s = npt.NDArray[np.int32]

#: An amount that is so near a whole number of rounds, by its own share, is one: amounts are sums
#: and products of floats.
_CLOSE = 1e-12


@dataclass(frozen=True)
class Line:
    """The rows of a domain in their order.

    Attributes:
        ends: float64 [rows], where each row ends on the first round; ascending, from 0.
    """

    ends: Float64s

    @property
    def there(self) -> float:
        """What there is of the domain, on the scale of `ends`."""
        return float(self.ends[-1]) if len(self.ends) else 0.0

    def rows_in(self, amount: float) -> int:
        """How many rows of the line come nearest to an amount; of two as near the fewer.

        Example:
            >>> Line(np.array([10.0, 30.0])).rows_in(70.0)  # once all, then the first again
            5
        """
        there = self.there
        if there <= 0 or amount <= 0:
            return 0
        rounds = round(amount / there)
        rest = amount - rounds * there
        if abs(rest) <= _CLOSE * amount:
            return rounds * len(self.ends)
        if rest < 0:
            rounds, rest = rounds - 1, rest + there
        after = int(np.searchsorted(self.ends, rest))
        low = self.ends[after - 1] if after else 0.0
        nearer_before = after == len(self.ends) or rest - low <= self.ends[after] - rest
        if not nearer_before:
            return rounds * len(self.ends) + after + 1
        return rounds * len(self.ends) + (int(np.searchsorted(self.ends, low)) + 1 if after else 0)

    def passes(self, amounts: Float64s) -> Int32s:
        """How often each row is drawn in each phase: int32 [rows, phases].

        Args:
            amounts: float64 [phases], drawn by the end of each phase; ascending.

        Example:
            >>> Line(np.array([10.0, 20.0, 30.0])).passes(np.array([20.0, 50.0])).tolist()
            [[1, 1], [1, 1], [0, 1]]
        """
        rows = len(self.ends)
        place = np.arange(rows)[:, None]
        ends = np.array([self.rows_in(float(amount)) for amount in amounts], np.int64)
        rounds, rest = np.divmod(ends, max(1, rows))
        times = rounds + (place < rest)
        return np.diff(times, axis=1, prepend=0).astype(np.int32)


def domain_order(domain: Int64s, draw: Float64s, *ties: npt.NDArray[np.integer]) -> Int64s:
    """Rows by domain, and within it by their draws; equal draws by what tells rows apart.

    Args:
        ties: columns that break ties, the first of them before the second.

    Example:
        >>> draw = np.array([0.5, 0.9, 0.1])
        >>> domain_order(np.array([1, 0, 1]), draw, np.array([3, 2, 1])).tolist()
        [1, 2, 0]
    """
    order: Int64s = np.argsort(draw)
    # Of 16 bits numpy sorts by counting: a quarter of the time that both keys take at once.
    narrow = np.uint16 if domain.max(initial=0) < 1 << 16 else np.int64
    order = order[np.argsort(domain[order].astype(narrow), kind="stable")]
    equal = (np.diff(draw[order]) == 0) & (np.diff(domain[order]) == 0)
    if equal.any():  # rare, and five keys take several times as long
        order = np.lexsort((*reversed(ties), draw, domain))
    return order
