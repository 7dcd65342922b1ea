"""The general solution of relative position by rotation: powers of a learned orthogonal matrix.

If R_mᵀ R_n = R_(n−m) for all m and n, then R_n = exp(nB) with Bᵀ = −B (kexue.fm/archives/9403).
Every skew-symmetric B is Q Λ Qᵀ with Q orthogonal and Λ made of 2 × 2 blocks [[0, −θ], [θ, 0]], so

    R_n = exp(nB) = Q · rotation(nθ) · Qᵀ,   Q = exp(A), Aᵀ = −A

with A and θ learned. In n dimensions R = exp(Σ_a n_a B_a) has the relative property only if the
generators commute, and commuting skew-symmetric matrices share Q; hence one Q and one list of θ for
each axis. It costs one matrix exponential a call and two head_dim × head_dim products a token.

For softmax attention this reaches no function that ordinary rotary position does not: Q is absorbed
by the query and key projections, and what remains are learned frequencies. It is of use where
queries and keys are not preceded by a free projection (shared or frozen ones, per-head norms) and
in linear attention with a feature map.
"""

from contextlib import nullcontext
from typing import ClassVar

import torch
from einops import rearrange
from jaxtyping import Float, Num
from torch import Tensor, nn

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.rotary.axial import axial_frequencies
from ropewalk.blocks.rotary.checks import require_base, require_rotary_dim
from ropewalk.kernels.rotary import rotate


def skew_symmetric(matrix: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """U − Uᵀ of the strictly upper triangle U, the rest being ignored."""
    upper = matrix.triu(1)
    return upper - upper.mT


class OrthogonalRotary(nn.Module):
    """Rotary position by exp(Σ_a n_a B_a) with learned, commuting, skew-symmetric generators B_a.

    It starts as ordinary rotary position in the half layout (on several axes: as `AxialRotary`).
    The exponential, the angles and the products are computed in float32 whatever the dtype of the
    parameters and inputs, because a rounded Q is not orthogonal.

    Attributes:
        basis: (head_dim, head_dim) whose strictly upper triangle makes A; zeros at first.
        frequencies: (axes, head_dim / 2), radians per unit of each coordinate.

    Args:
        head_dim: width of a head, even; and divisible by 2·axes for the first frequencies.
        axes: number of coordinates of a position.
        base: base of the first frequencies.

    Raises:
        TypeError: an argument is not a number.
        ValueError: `head_dim` is not divisible by 2·axes, or `base` is not above 1.
    """

    paper: ClassVar[str] = "Su Jianlin, kexue.fm/archives/9403"

    def __init__(self, head_dim: int, axes: int = 1, *, base: float = 10000.0) -> None:
        super().__init__()
        require_integer("OrthogonalRotary", 1, head_dim=head_dim, axes=axes)
        require_rotary_dim(head_dim)
        require_base(base)
        if head_dim % (2 * axes):
            raise ValueError(
                f"OrthogonalRotary.head_dim: expected a multiple of 2·axes = {2 * axes}, got "
                f"{head_dim}"
            )
        self.head_dim = head_dim
        self.axes = axes
        self.base = base
        self.basis = nn.Parameter(torch.empty(head_dim, head_dim))
        self.frequencies = nn.Parameter(torch.empty(axes, head_dim // 2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets Q to the identity and gives each axis its own planes and spectrum."""
        self.basis.zero_()
        self.frequencies.zero_()
        if self.frequencies.is_meta:
            return
        sections = [self.head_dim // (2 * self.axes)] * self.axes
        spectrum, axis = axial_frequencies(self.head_dim, sections, base=self.base)
        for number, row in enumerate(self.frequencies):
            row.copy_(torch.where(axis == number, spectrum, 0.0))

    def orthogonal_basis(
        self, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "head_dim head_dim"]:
        """Q, whose columns i and i + head_dim/2 span plane i."""
        return torch.matrix_exp(skew_symmetric(self.basis.to(dtype)))

    def generators(
        self, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "axes head_dim head_dim"]:
        """B_a for each axis: skew-symmetric, and commuting with each other."""
        basis = self.orthogonal_basis(dtype)
        first, second = basis.chunk(2, dim=-1)
        turned = torch.einsum("ip,ap,jp->aij", second, self.frequencies.to(dtype), first)
        return turned - turned.mT

    def rotate(
        self,
        x: Float[Tensor, "*batch heads seq head_dim"],
        positions: Num[Tensor, "*batch seq"] | Num[Tensor, "*batch seq axes"],
    ) -> Float[Tensor, "*batch heads seq head_dim"]:
        """Applies R at each position to queries or keys.

        Args:
            x: queries or keys.
            positions: integers or float32/float64, (seq,) or (batch, seq); with a last dimension
                of `axes` if there are several axes.

        Returns:
            The rotated tensor in the dtype of `x`.

        Raises:
            TypeError: the positions are half-precision.
            ValueError: the last dimension of `positions` is not `axes`.
        """
        coordinates = positions[..., None] if self.axes == 1 else positions
        if coordinates.shape[-1] != self.axes:
            raise ValueError(
                f"positions: expected (…, seq, {self.axes}), got {tuple(positions.shape)}"
            )
        if coordinates.dtype in (torch.bfloat16, torch.float16):
            raise TypeError(
                f"positions: expected integers or float32/float64, got {coordinates.dtype}, which "
                "cannot hold large positions"
            )
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        # Sums over axes by hand: a matrix product would be rounded to half under autocast.
        angles = (coordinates.to(dtype)[..., None] * self.frequencies.to(dtype)).sum(-2)
        if angles.ndim > 2:
            angles = rearrange(angles, "... seq pairs -> ... 1 seq pairs")
        # The meta device has no autocast to be switched off.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            basis = self.orthogonal_basis(dtype)
            in_planes = rotate(x.to(dtype) @ basis, angles.cos(), angles.sin(), layout="half")
            return (in_planes @ basis.mT).to(x.dtype)

    forward = rotate

    def extra_repr(self) -> str:
        return f"{self.head_dim}, axes={self.axes}, base={self.base}"
