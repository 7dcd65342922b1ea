"""An independent twin of `rotate_query_key`: every pair is a complex number, in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


def turn_pairs(
    x: Tensor,
    angles: Tensor,
    *,
    layout: str = "half",
    weight: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """`x` (batch, heads, seq, head_dim) normed and turned by angles ((batch,) seq, pairs)."""
    x, angles = x.double(), angles.double()
    angles = angles[None] if angles.ndim == 2 else angles
    if weight is not None:
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    pairs = angles.shape[-1]
    first = torch.arange(pairs) if layout == "half" else 2 * torch.arange(pairs)
    second = first + (pairs if layout == "half" else 1)
    turned = torch.complex(x[..., first], x[..., second]) * torch.polar(
        torch.ones_like(angles), angles
    ).unsqueeze(1)
    result = x.clone()
    result[..., first], result[..., second] = turned.real, turned.imag
    return result


@pytest.fixture(scope="session")
def oracle() -> Callable[..., Tensor]:
    """`turn_pairs`, the float64 twin."""
    return turn_pairs


@dataclass
class Inputs:
    """Random queries, keys, angles and weights of norms."""

    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    queries: int = 7
    keys: int | None = None
    head_dim: int = 12
    pairs: int = 6
    by_row: bool = True
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def query_key(self, *, token_major: bool = False) -> tuple[Tensor, Tensor]:
        """(batch, heads, seq, head_dim); seen in (batch, seq, heads, head_dim) if token_major."""
        keys = self.queries if self.keys is None else self.keys
        query = self._random(self.batch, self.heads, self.queries, self.head_dim)
        key = self._random(self.batch, self.kv_heads, keys, self.head_dim)
        if token_major:
            query, key = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key))
        return query.to(self.device, self.dtype), key.to(self.device, self.dtype)

    def angles(self, seq: int | None = None) -> Tensor:
        """(batch, seq, pairs), or without the batch where all rows share them."""
        shape = (self.queries if seq is None else seq, self.pairs)
        angles = 3 * self._random(*((self.batch, *shape) if self.by_row else shape))
        return angles.to(self.device)

    def weight(self) -> Tensor:
        """Of a norm; leaves of the graph."""
        return (1 + 0.3 * self._random(self.head_dim)).to(self.device, self.dtype).requires_grad_()


@pytest.fixture(scope="session")
def inputs() -> type[Inputs]:
    """`Inputs(...)` makes queries and keys, angles and weights."""
    return Inputs
