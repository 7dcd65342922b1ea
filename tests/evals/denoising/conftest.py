"""A denoiser so small that a training step takes milliseconds."""

from dataclasses import replace

import pytest
import torch

from ropewalk.evals.denoising.data import ImageData, digits
from ropewalk.evals.denoising.parallel import Ranks
from ropewalk.evals.denoising.recipe import Recipe


@pytest.fixture
def tiny() -> Recipe:
    """Six steps of a model of one block."""
    return Recipe(dim=16, depth=1, heads=2, steps=6, batch_size=16, warmup=2)


@pytest.fixture
def alone() -> Ranks:
    """A single process on the CPU."""
    return Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="session")
def few_digits() -> ImageData:
    """A hundred of the digits."""
    data = digits()
    assert data.labels is not None
    return replace(data, images=data.images[:100], labels=data.labels[:100])
