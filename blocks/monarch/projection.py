"""The Monarch matrix nearest to a dense one, in closed form.

    min ‖W − M‖²  =  Σ over slices of min ‖W[l, k] − L[l, k] R[k, l]‖²

because no two slices of W (s × p each) share a number of the factors. Each minimum is the slice's
singular value decomposition cut at rank r, whose roots √σ go to either factor; the error² is the
sum of the σ² that are dropped. Projecting twice changes nothing.

The slices are cut where `ropewalk.kernels.monarch.monarch_matmul` multiplies them. (A projection
that cuts them elsewhere is exact only for some shapes.)

Source: Dao et al., arXiv 2204.00595 §3.3 and theorem 1; kexue.fm/archives/10249.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.blocks.monarch.shape import Blocks, MonarchShape
from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.monarch.validation import REAL


class Projection(NamedTuple):
    """The factors of the nearest Monarch matrix, and how near it is.

    Attributes:
        right: R, in the dtype of the weight.
        left: L, in the dtype of the weight.
        relative_error: ‖W − LR‖ / ‖W‖ before the factors are rounded to the dtype of the weight; 0
            for a weight of zeros.
        shape: the sizes.
    """

    right: Float[Tensor, "input_blocks output_blocks*rank input_size"]
    left: Float[Tensor, "output_blocks output_size input_blocks*rank"]
    relative_error: float
    shape: MonarchShape


class Decomposition(NamedTuple):
    """The singular value decomposition of every slice, from which each rank is one cut.

    Attributes:
        u: (l, k, s, full rank), float32 (float64 of float64).
        sigma: (l, k, full rank), descending.
        vh: (l, k, full rank, p).
    """

    u: Tensor
    sigma: Tensor
    vh: Tensor

    def relative_error(self, rank: int) -> float:
        """What is lost at a rank, relative to the norm of the whole."""
        greatest = self.sigma.amax()
        if greatest == 0:
            return 0.0
        squares = (self.sigma / greatest).double().square()
        return float((squares[..., rank:].sum() / squares.sum()).sqrt())

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Right (k, l·r, p) and left (l, s, k·r) of a rank, √σ in either."""
        root = self.sigma[..., :rank].sqrt()
        left = (self.u[..., :rank] * root.unsqueeze(-2)).transpose(1, 2).flatten(2)
        right = (root.unsqueeze(-1) * self.vh[..., :rank, :]).transpose(0, 1).flatten(1, 2)
        return right.contiguous(), left.contiguous()


def monarch_project(
    weight: Float[Tensor, "out_features in_features"],
    *,
    nblocks: Blocks = 4,
    rank: int | None = None,
) -> Projection:
    """The Monarch matrix that is nearest to `weight` in the Frobenius norm.

    All slices are decomposed at once, in float32 for half precision. Costs O(out · in · min(p, s)).
    The result is no part of a graph.

    Args:
        weight: (out, in), as `nn.Linear` has it, floating-point. Sides that the blocks do not
            divide are filled up with zeros, which stay zero.
        nblocks: (input blocks, output blocks), or a number for both.
        rank: of a slice; see `MonarchShape.of` for None.

    Returns:
        `Projection(right, left, relative_error, shape)`.

    Raises:
        ValueError: a weight that is not 2-D, not floating-point or not finite; numbers of blocks or
            a rank that do not fit.
        TypeError: an argument of the wrong kind.

    Example:
        >>> weight = torch.randn(96, 64)
        >>> right, left, error, shape = monarch_project(weight, nblocks=4, rank=6)
        >>> right.shape, left.shape
        (torch.Size([4, 24, 16]), torch.Size([4, 24, 24]))
    """
    check_weight(weight)
    shape = MonarchShape.of(weight.shape[1], weight.shape[0], nblocks=nblocks, rank=rank)
    found = decompose(weight, shape)
    right, left = found.factors(shape.rank)
    error = found.relative_error(shape.rank)
    return Projection(right.to(weight.dtype), left.to(weight.dtype), error, shape)


@torch.no_grad()
def decompose(weight: Tensor, shape: MonarchShape) -> Decomposition:
    """The decomposition of all slices of a weight; the rank of the shape does not matter.

    Raises:
        ValueError: the weight is not finite, or so large that its singular values are not.
    """
    wide = weight.detach().to(statistics_dtype(weight.dtype))
    if not bool(wide.isfinite().all()):
        raise ValueError(
            "weight: expected finite numbers, got NaN or infinite ones; a matrix with those has no "
            "nearest Monarch matrix"
        )
    found = Decomposition(*torch.linalg.svd(slices(wide, shape), full_matrices=False))
    if not bool(found.sigma.isfinite().all()):
        raise ValueError(
            f"weight: expected numbers whose slices have norms in the range of {wide.dtype}, got "
            f"some of up to {float(wide.abs().amax()):.3g}; divide the weight before"
        )
    return found


def slices(
    weight: Float[Tensor, "out_features in_features"], shape: MonarchShape
) -> Float[Tensor, "output_blocks input_blocks output_size input_size"]:
    """The slices that a weight is cut into, filled up with zeros."""
    rows, columns = shape.padded_out - weight.shape[0], shape.padded_in - weight.shape[1]
    if rows or columns:
        weight = functional.pad(weight, (0, columns, 0, rows))
    blocks = weight.unflatten(1, (shape.input_blocks, shape.input_size))
    return blocks.unflatten(0, (shape.output_blocks, shape.output_size)).transpose(1, 2)


def check_weight(weight: Tensor) -> None:
    """A matrix of floating-point numbers that are there.

    Raises:
        ValueError: it is none.
        TypeError: not a tensor.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"weight: expected (out_features, in_features), got {tuple(weight.shape)}; project the "
            "matrices of a stack one by one"
        )
    if weight.dtype not in REAL:
        raise ValueError(
            f"weight: expected float16, bfloat16, float32 or float64, got {weight.dtype}; use "
            ".float()"
        )
    if weight.is_meta:
        raise ValueError("weight: expected values, got a tensor on the meta device; load it first")
