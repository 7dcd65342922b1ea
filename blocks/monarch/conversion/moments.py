"""The second moment of one layer's inputs, C = E[x xᵀ], and how far an estimate is believed.

From n rows of d features the estimate S has d² numbers of which no more than n·d were seen. What a
fit makes small in S, it makes large elsewhere: with n = d/2 a layer's output is farther off on
fresh inputs than without calibration. So what features have in common is shrunk towards nothing,

    C = (1 − λ) S + λ diag(S),      λ = E‖S − C‖² / E‖S − diag(S)‖²    off the diagonal,

the share that makes E‖(1 − λ) S + λ diag(S) − C‖² least. Every feature is measured in units of its
own root mean square, so that a few large ones do not decide for all. How far S is from C is told by
two halves A and B of the rows, (A + B)/2 = S: ‖A − B‖²/4, which holds for rows that depend on each
other, as those of a text do, where halves of n/2 independent rows would be too sure.

That weighs all of C alike. A layer's output is made of the directions that are large, which are
known best, and λ² in the place of λ leaves it a smaller error on fresh inputs at almost any n
(Gaussian inputs of even, falling and steep spectra, n/d from 1/4 to 64); so `trusted` takes λ².

λ falls as 1/n; where inputs are white it stays near 1, and the fit is the plain projection.

Source: Ledoit and Wolf 2004, doi 10.1016/S0047-259X(03)00096-4 (λ); Schäfer and Strimmer 2005,
doi 10.2202/1544-6115.1175 (the diagonal as the target).
"""

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.dtypes import statistics_dtype

# With as many rows a feature, an error is told by the rows that were fitted to; with fewer, by half
# of them that were not.
ENOUGH = 4


class Moment:
    """Sums of x xᵀ over two halves of the rows of one layer's inputs.

    Attributes:
        halves: (2, in, in); None before the first row.
        counts: rows in each half, as many or one more in the first.
    """

    def __init__(self) -> None:
        self.halves: Tensor | None = None
        self.counts = [0, 0]

    @property
    def rows(self) -> int:
        """How many there were."""
        return sum(self.counts)

    @property
    def few(self) -> bool:
        """Whether there are fewer rows than `ENOUGH` for each feature."""
        return self.halves is not None and self.rows < ENOUGH * self.halves.shape[-1]

    def add(self, rows: Tensor) -> None:
        """Counts rows (n, in): the first ones in one half, the last ones in the other.

        Cut once and not alternately: neighbours are of one text, and too much alike.
        """
        first = (self.rows + len(rows) + 1) // 2 - self.counts[0]
        with suspended(rows):
            wide = rows.to(statistics_dtype(rows.dtype))
            if self.halves is None:
                self.halves = wide.new_zeros(2, wide.shape[1], wide.shape[1])
            for half, part in enumerate((wide[:first], wide[first:])):
                self.halves[half].addmm_(part.mT, part)
                self.counts[half] += len(part)

    def mean(self) -> Tensor:
        """S, (in, in)."""
        assert self.halves is not None  # asked for only after rows
        return self.halves.sum(0) / self.rows

    def half(self, index: int) -> Tensor:
        """The estimate from half of the rows, (in, in)."""
        assert self.halves is not None
        return self.halves[index] / max(1, self.counts[index])

    def doubt(self) -> float:
        """λ, between 0 and 1: 1 where one row is all there is."""
        if not self.counts[1]:
            return 1.0
        mean = self.mean()
        scale = mean.diagonal().sqrt()
        # A feature that never occurs has nothing in common with others.
        scale = torch.where(scale > 0, 1 / scale, 0.0)
        noise = _off_diagonal(self.half(0).sub_(self.half(1)), scale) / 4
        seen = _off_diagonal(mean, scale)
        return min(1.0, noise / seen) if seen > 0 else 1.0


def _off_diagonal(matrix: Tensor, scale: Tensor) -> float:
    """The sum of squares, every feature in its units; the matrix is used up."""
    square = matrix.mul_(scale).mul_(scale[:, None]).square_()
    return float(square.sum() - square.diagonal().sum())


def trusted(moment: Tensor, doubt: float) -> Tensor:
    """What is fitted to: the estimate, shrunk by λ²."""
    return shrunk(moment, min(1.0, doubt) ** 2)


def shrunk(moment: Tensor, share: float) -> Tensor:
    """(1 − λ) S + λ diag(S)."""
    return (1 - share) * moment + share * torch.diag(moment.diagonal())
