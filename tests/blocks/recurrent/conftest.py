"""Recurrences that solvers are tried on."""

import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.recurrent.cells import (
    Cell,
    DiagonalGRUCell,
    DiagonalLSTMCell,
    FunctionCell,
    GRUCell,
    LSTMCell,
    TanhCell,
)
from ropewalk.blocks.recurrent.solvers import RecurrenceWarning, forget_warnings

WIDTH, SIZE = 3, 5


def a_function(dtype: torch.dtype) -> FunctionCell:
    """A cell of someone's own, dense, that closes over a parameter."""
    generator = torch.Generator().manual_seed(1)
    mix = (torch.randn(SIZE, SIZE, generator=generator) / 4).to(dtype).requires_grad_()
    read = torch.randn(SIZE, WIDTH, generator=generator).to(dtype)
    cell = FunctionCell(lambda h, x: torch.sin(h @ mix.mT + x @ read.mT), SIZE, structure="dense")
    cell.closed_over = mix
    return cell


MAKERS: dict[str, Callable[[torch.dtype], Cell]] = {
    "tanh": lambda dtype: TanhCell(SIZE, input_dim=WIDTH, dtype=dtype),
    "tanh diagonal": lambda dtype: TanhCell(
        SIZE, True, input_dim=WIDTH, bounded=False, dtype=dtype
    ),
    "gru diagonal": lambda dtype: DiagonalGRUCell(WIDTH, SIZE, dtype=dtype),
    "lstm diagonal": lambda dtype: DiagonalLSTMCell(WIDTH, SIZE, dtype=dtype),
    "gru": lambda dtype: GRUCell(WIDTH, SIZE, bounded=False, dtype=dtype),
    "lstm": lambda dtype: LSTMCell(WIDTH, SIZE, dtype=dtype),
    "function": a_function,
}


def _make(name: str, dtype: torch.dtype = torch.float32) -> Cell:
    """A cell with the weights that it always has."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKERS[name](dtype)


def _draw(cell: Cell, dtype: torch.dtype = torch.float32, time: int = 24, cu=None):
    """Inputs, initial states and the boundaries of sequences, always the same."""
    generator = torch.Generator().manual_seed(2)
    sequences = 2 if cu is None else len(cu) - 1
    inputs = torch.randn(2 if cu is None else 1, time, WIDTH, generator=generator)
    initial = torch.rand(sequences, *cell.state_shape, generator=generator) - 0.5
    boundaries = None if cu is None else torch.tensor(cu)
    return inputs.to(dtype), initial.to(dtype), boundaries


def _unrolled(cell: Cell, inputs: Tensor, initial: Tensor, cu: Tensor | None = None) -> Tensor:
    """The oracle: steps in turn, by plain autograd, sequence by sequence."""
    drive = cell.project(inputs)
    bounds = None if cu is None else cu.tolist()
    pieces = [drive] if bounds is None else [drive[:, a:b] for a, b in pairwise(bounds)]
    found = []
    for i, piece in enumerate(pieces):
        state = initial if cu is None else initial[i : i + 1]
        for t in range(piece.shape[1]):
            state = cell.step(state, piece[:, t])
            found.append(state)
    return torch.stack(found, 1)


@pytest.fixture
def warned_freely() -> Iterator[None]:
    """Solvers may say that they took another way."""
    forget_warnings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecurrenceWarning)
        yield
    forget_warnings()


@pytest.fixture
def make_cell():
    """`make_cell(name, dtype)`."""
    return _make


@pytest.fixture
def draw():
    """`draw(cell, dtype, time=…, cu=…)`: inputs, initial states, boundaries."""
    return _draw


@pytest.fixture
def unrolled():
    """`unrolled(cell, inputs, initial, boundaries)`: the oracle."""
    return _unrolled
