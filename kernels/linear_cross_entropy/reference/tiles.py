"""Tiles of logits: their sizes, and how one is computed.

A tile of 512 tokens × 4096 columns is large enough for a matrix product to run at full speed and
small enough that the softmax after it finds the logits in a cache. Half precision is computed in
float32, tile by tile, because products of half matrices on a CPU are rounded to half.
"""

import torch
from torch import Tensor

from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.linear_cross_entropy.chunks import WORKSPACE, Chunks
from ropewalk.kernels.linear_cross_entropy.problem import IGNORED, Problem

Selection = slice | Tensor
"""Rows of a matrix: a range, or their indices."""

TILE = Chunks(tokens=512, columns=4096)
# Twice the tokens where a cast of the weights' tile must pay for itself, in as much memory.
HALF_TILE = Chunks(tokens=1024, columns=2048)
# Whole tiles of the filter, so that a tile of columns is live or not as one.
LEAST = Chunks(tokens=128, columns=256)


def tile_sizes(problem: Problem) -> Chunks:
    """The largest tile, of the sizes above or a power of two below, that fits the workspace."""
    dtype = statistics_dtype(problem.hidden.dtype)
    half, capped = dtype != problem.hidden.dtype, problem.softcap is not None
    tokens, columns = HALF_TILE if half else TILE

    def held(tokens: int, columns: int) -> int:
        # The logits, one more tile for the softcap's derivative; the rows that were selected;
        # float32 forms of the weights and of their gradient.
        elements = (1 + capped) * tokens * columns + 2 * tokens * problem.dim
        elements += 2 * columns * problem.dim * (half or not problem.exact)
        return elements * dtype.itemsize

    while held(tokens, columns) > WORKSPACE and columns > LEAST.columns:
        columns //= 2
    while held(tokens, columns) > WORKSPACE and tokens > LEAST.tokens:
        tokens //= 2
    return Chunks(tokens, columns)


def counted_tokens(targets: Tensor, size: int) -> list[Selection]:
    """The tokens that are not ignored, `size` at a time: ranges if that is all of them."""
    rows = targets.ne(IGNORED).nonzero()[:, 0]
    if rows.numel() == targets.numel():
        return [slice(start, start + size) for start in range(0, targets.numel(), size)]
    return list(rows.split(size)) if rows.numel() else []


class Tiles:
    """Logits of one problem, computed into one buffer again and again.

    Attributes:
        problem: as it came.
        sizes: the most tokens and columns of a tile.
        dtype: of the logits.
    """

    def __init__(self, problem: Problem, sizes: Chunks | None = None) -> None:
        self.problem = problem
        self.sizes = sizes = sizes or tile_sizes(problem)
        self.dtype = statistics_dtype(problem.hidden.dtype)
        count = min(sizes.tokens, problem.tokens) * min(sizes.columns, problem.vocabulary)
        self._logits = problem.hidden.new_empty(count, dtype=self.dtype)
        self._slopes = None if problem.softcap is None else torch.empty_like(self._logits)
        self._bias = None if problem.bias is None else problem.bias.to(self.dtype)

    def hidden(self, tokens: Selection) -> Tensor:
        return self.problem.hidden[tokens].to(self.dtype)

    def weight(self, columns: Selection) -> Tensor:
        return self.problem.weight[columns].to(self.dtype)

    def logits(self, hidden: Tensor, weight: Tensor, columns: Selection) -> Tensor:
        """(tokens, columns); overwritten by the next call."""
        shape = (hidden.shape[0], weight.shape[0])
        out = self._logits[: shape[0] * shape[1]].view(shape)
        scale = self.problem.logit_scale
        if self._bias is None:
            torch.mm(hidden, weight.T, out=out)
            if scale != 1.0:
                out.mul_(scale)
        else:
            bias = self._bias[columns]
            torch.addmm(bias, hidden, weight.T, beta=scale, alpha=scale, out=out)
        cap = self.problem.softcap
        return out if cap is None else out.div_(cap).tanh_().mul_(cap)

    def slopes(self, logits: Tensor) -> Tensor | None:
        """The derivative of capped logits by what was capped; overwritten by the next call."""
        if self._slopes is None or self.problem.softcap is None:
            return None
        out = self._slopes[: logits.numel()].view_as(logits)
        return torch.div(logits, self.problem.softcap, out=out).square_().neg_().add_(1)


def places(targets: Tensor, columns: Selection, count: int) -> tuple[Tensor, Tensor]:
    """(rows, columns of the tile) where the tile holds a row's target.

    Args:
        targets: (tokens,) of the tile's rows.
        columns: the tile's, a range or ascending indices.
        count: how many columns these are.
    """
    if isinstance(columns, slice):
        column = targets - columns.start
        held = (column >= 0) & (column < count)
    else:
        column = torch.searchsorted(columns, targets).clamp_(max=count - 1)
        held = columns[column] == targets
    rows = held.nonzero()[:, 0]
    return rows, column[rows]
