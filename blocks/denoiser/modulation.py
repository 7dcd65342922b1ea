"""adaLN: what the condition does to a block, as three vectors for each of its two halves.

    shift, scale, gate (mixer), shift, scale, gate (feed-forward)  =  A silu(c)

full      a matrix A (6·dim, dim) for each block: a third of a DiT's parameters, hardly any FLOPs
shared    one for all blocks and a learned offset for each (PixArt-α, arXiv 2310.00426 §2.3)
low_rank  A = U V for each block, of rank dim / 16 if nothing else is said

All start at zero, so that every block starts as the identity (adaLN-Zero, arXiv 2212.09748 §3.2).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

AdaLN = Literal["full", "shared", "low_rank"]
ADALN: tuple[AdaLN, ...] = ("full", "shared", "low_rank")
VECTORS = 6


def default_rank(dim: int) -> int:
    """Of a low-rank modulation: dim / 16, and at least four."""
    return max(4, dim // 16)


class FullModulation(nn.Linear):
    """A matrix of its own."""

    def __init__(self, dim: int, vectors: int = VECTORS, **placement: object) -> None:
        super().__init__(dim, vectors * dim, **placement)  # pyright: ignore[reportArgumentType]

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class SharedModulation(nn.Module):
    """An offset to the vectors that all blocks share."""

    def __init__(
        self,
        dim: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.empty(VECTORS * dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.offset)

    def forward(self, shared: Float[Tensor, "batch vectors"]) -> Float[Tensor, "batch vectors"]:
        """The block's vectors."""
        return shared + self.offset


class LowRankModulation(nn.Module):
    """A matrix of a low rank."""

    def __init__(
        self,
        dim: int,
        rank: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, VECTORS * dim, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A random V and a U of zeros."""
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, condition: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch vectors"]:
        """The block's vectors."""
        return self.up(self.down(condition))
