"""The feed-forwards of a denoiser block.

    swiglu    W_out (silu(W_gate x) · W_up x), hidden 8/3 · dim     (arXiv 2002.05202)
    gelu      W_out gelu(W_in x + b) + b, hidden 4 · dim, tanh's form (DiT, arXiv 2212.09748)
    monarch   swiglu whose matrices are Monarch matrices             (arXiv 2204.00595)

The first two keep their input and their projection for the backward and compute the product once
more there (`ropewalk.kernels.gated_mlp`).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ropewalk.blocks.monarch import MonarchLinear
from ropewalk.kernels.gated_mlp import gated_activation, gated_mlp

FeedForwardKind = Literal["swiglu", "gelu", "gelu_exact", "monarch"]
FEED_FORWARDS: tuple[FeedForwardKind, ...] = ("swiglu", "gelu", "gelu_exact", "monarch")
_ROUNDED_TO = 16


def default_width(kind: FeedForwardKind, dim: int) -> int:
    """Hidden units: 4 · dim, of gated ones 8/3 · dim rounded to sixteens, for equal parameters."""
    if kind.startswith("gelu"):
        return 4 * dim
    return max(1, round(8 * dim / 3 / _ROUNDED_TO)) * _ROUNDED_TO


class DenseFeedForward(nn.Module):
    """SwiGLU, or GELU without a gate."""

    def __init__(
        self,
        dim: int,
        width: int,
        kind: FeedForwardKind,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gated = kind == "swiglu"
        self.activation = {"swiglu": "silu", "gelu": "gelu_tanh", "gelu_exact": "gelu"}[kind]
        rows = 2 * width if self.gated else width
        self.input = nn.Linear(dim, rows, device=device, dtype=dtype)
        self.output = nn.Linear(width, dim, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The update of the residual stream."""
        return gated_mlp(
            x,
            self.input.weight,
            self.output.weight,
            self.input.bias,
            self.output.bias,
            activation=self.activation,  # pyright: ignore[reportArgumentType]
            gated=self.gated,
        )

    def extra_repr(self) -> str:
        return f"activation={self.activation}, gated={self.gated}"


class MonarchFeedForward(nn.Module):
    """SwiGLU of Monarch matrices."""

    def __init__(
        self,
        dim: int,
        width: int,
        nblocks: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.input = MonarchLinear(dim, 2 * width, nblocks=nblocks, device=device, dtype=dtype)
        self.output = MonarchLinear(width, dim, nblocks=nblocks, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """The update of the residual stream."""
        return self.output(gated_activation(self.input(x), activation="silu"))


def feed_forward(
    kind: FeedForwardKind,
    dim: int,
    width: int,
    nblocks: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The feed-forward of a name."""
    if kind == "monarch":
        return MonarchFeedForward(dim, width, nblocks, device=device, dtype=dtype)
    return DenseFeedForward(dim, width, kind, device=device, dtype=dtype)
