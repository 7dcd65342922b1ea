"""One adapter of a layer: a Monarch matrix that starts at zero.

The left factor starts at zero and the right one as that of a `MonarchLinear`, so the product is
zero and its gradient is not. (Were both zero, neither would ever learn.) Adding zero changes no bit
of a layer's output, except that a −0.0 becomes 0.0.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.checks import require_number
from ropewalk.blocks.monarch.linear import MonarchLinear
from ropewalk.blocks.monarch.shape import Blocks
from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.monarch import Backend, monarch_to_dense


class MonarchBranch(MonarchLinear):
    """What an adapter adds: scaling · M · dropout(x), without a bias.

    Attributes:
        scaling: factor on the product.
        dropout: probability with which an input feature is dropped in training.

    Args:
        in_features: of the layer.
        out_features: of the layer.
        nblocks: (input blocks, output blocks), or a number for both.
        rank: of a slice; None as in `MonarchShape.of`.
        scaling: a finite number.
        dropout: at least 0 and below 1.
        backend: see `ropewalk.kernels.monarch.monarch_matmul`.
        device: of the factors.
        dtype: of the factors.

    Raises:
        ValueError: a number out of its range.
        TypeError: an argument of the wrong kind.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        nblocks: Blocks,
        rank: int | None,
        scaling: float,
        dropout: float,
        backend: Backend,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ) -> None:
        require_number("MonarchAdapter", "a finite number", scaling=scaling)
        require_number("MonarchAdapter", "a probability", dropout=dropout)
        if not math.isfinite(scaling):
            raise ValueError(f"MonarchAdapter.scaling: expected a finite number, got {scaling!r}")
        if not 0 <= dropout < 1:
            raise ValueError(f"MonarchAdapter.dropout: expected 0 ≤ p < 1, got {dropout!r}")
        super().__init__(
            in_features,
            out_features,
            nblocks=nblocks,
            rank=rank,
            bias=False,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        self.scaling, self.dropout = float(scaling), float(dropout)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """To no effect, also after `to_empty`."""
        super().reset_parameters()
        if not self.left.is_meta:
            nn.init.zeros_(self.left)

    def forward(
        self, x: Float[Tensor, "*batch in_features"]
    ) -> Float[Tensor, "*batch out_features"]:
        """M · dropout(x), not yet scaled, in the dtype of the factors or autocast's."""
        if self.dropout and self.training:
            x = functional.dropout(x, self.dropout)
        return super().forward(x.to(self.right.dtype))

    def delta(self, factor: float) -> Float[Tensor, "out_features in_features"]:
        """The matrix times a factor, in float32 (float64 of float64); differentiable."""
        wide = statistics_dtype(self.right.dtype)
        dense = monarch_to_dense(self.right.to(wide), self.left.to(wide))
        return dense[: self.out_features, : self.in_features] * factor

    def extra_repr(self) -> str:
        """Sizes, scaling and dropout."""
        return f"{super().extra_repr()}, scaling={self.scaling}, dropout={self.dropout}"
