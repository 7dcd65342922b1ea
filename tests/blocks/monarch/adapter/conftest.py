"""Adapters that have learned something, and layers of the kinds that are wrapped."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch.adapter import MonarchAdapter, adapters_of


class Conv1D(nn.Module):
    """A linear layer with a transposed weight, as transformers' GPT-2 has it, without it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(0.1 * torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


@pytest.fixture
def transposed() -> type[nn.Module]:
    return Conv1D


@pytest.fixture
def taught() -> Callable[[nn.Module], nn.Module]:
    """Gives every adapter of a model values that have an effect."""

    def teach(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(7)
        for _, layer in adapters_of(model):
            for name in layer.adapters:
                left = layer.branch(name).left
                drawn = 0.3 * torch.randn(left.shape, generator=generator, dtype=torch.float64)
                left.data.copy_(drawn)
        return model

    return teach


@pytest.fixture
def adapted(taught) -> Callable[..., MonarchAdapter]:
    """An adapter with an effect, on a layer of sizes that blocks do not divide."""

    def make(inputs: int = 13, outputs: int = 18, dtype=torch.float64, **options) -> MonarchAdapter:
        torch.manual_seed(0)
        options = {"nblocks": 3, "rank": 2, **options}
        return taught(MonarchAdapter(nn.Linear(inputs, outputs, dtype=dtype), **options))

    return make
