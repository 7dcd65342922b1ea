"""Small models to convert."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A feed-forward layer with a residual, as transformers have it."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict(
            {"up": nn.Linear(dim, hidden), "act": nn.GELU(), "down": nn.Linear(hidden, dim)}
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mlp["act"](self.mlp["up"](self.norm(x)))
        return x + self.mlp["down"](hidden)


@pytest.fixture
def make_model() -> Callable[[], nn.Sequential]:
    """Two blocks of 24 and 40 features, and a head."""

    def make() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(Block(24, 40), Block(24, 40), nn.Linear(24, 7, bias=False)).eval()

    return make


@pytest.fixture
def inputs() -> Tensor:
    """Rows (3, 60, 24), enough for 40 features, which depend on each other and differ in size."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(24, 24, generator=generator) * torch.linspace(0.05, 2, 24)
    return torch.randn(3, 60, 24, generator=generator) @ mixing
