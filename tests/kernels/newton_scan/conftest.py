"""The oracle: the cells from their papers' equations, step after step, in float64.

It is written out once more here, with gates by name, so that nothing is shared with what it judges.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

GATES = {"tanh": 1, "gru": 3, "lstm": 3}
ROWS = {"tanh": 1, "gru": 4, "lstm": 5}
STATE = {"tanh": (), "gru": (), "lstm": (2,)}


@dataclass
class Recurrence:
    """The tensors of a scan, leaves that want gradients."""

    cell: str
    inputs: Tensor
    weights: Tensor
    initial: Tensor | None

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.inputs, self.weights, self.initial) if t is not None]

    def to(self, *, dtype: torch.dtype | None = None, device: object = None) -> "Recurrence":
        """Fresh leaves."""
        tensors = (
            None if t is None else t.detach().to(device, dtype).clone().requires_grad_()
            for t in (self.inputs, self.weights, self.initial)
        )
        return Recurrence(self.cell, *tensors)


def draw(
    cell: str,
    batch: int,
    time: int,
    channels: int,
    *,
    sequences: int | None = None,
    initial: bool = True,
    std: float = 0.8,
    seed: int = 0,
) -> Recurrence:
    """A recurrence with weights of a standard deviation, float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows = batch if sequences is None else sequences
    return Recurrence(
        cell,
        normal(batch, time, GATES[cell], channels).requires_grad_(),
        (std * normal(ROWS[cell], channels)).requires_grad_(),
        (0.5 * normal(rows, *STATE[cell], channels)).requires_grad_() if initial else None,
    )


def step(cell: str, x: Tensor, w: Tensor, state: Tensor) -> Tensor:
    """The next state of a batch: x (batch, gates, channels)."""
    if cell == "tanh":
        return torch.tanh(w[0] * state + x[:, 0])
    if cell == "gru":
        reset = torch.sigmoid(x[:, 0] + w[0] * state)
        update = torch.sigmoid(x[:, 1] + w[1] * state)
        new = torch.tanh(x[:, 2] + reset * (w[2] * state + w[3]))
        return (1 - update) * new + update * state
    memory, hidden = state[:, 0], state[:, 1]
    forget = torch.sigmoid(x[:, 0] + w[0] * hidden + w[3] * memory)
    memory = forget * memory + (1 - forget) * torch.tanh(x[:, 1] + w[1] * hidden)
    output = torch.sigmoid(x[:, 2] + w[2] * hidden + w[4] * memory)
    return torch.stack([memory, output * torch.tanh(memory)], dim=1)


def steps(recurrence: Recurrence, *, bounds: list[int] | None = None) -> Tensor:
    """The states, differentiable; `bounds` are where packed sequences begin and end."""
    r = recurrence
    if bounds is not None:
        parts = []
        for i, (start, end) in enumerate(pairwise(bounds)):
            own = None if r.initial is None else r.initial[i : i + 1]
            parts.append(steps(Recurrence(r.cell, r.inputs[:, start:end], r.weights, own)))
        return torch.cat(parts, dim=1)
    batch, time, _, channels = r.inputs.shape
    shape = (*STATE[r.cell], channels)
    state = r.inputs.new_zeros(batch, *shape) if r.initial is None else r.initial
    states = []
    for t in range(time):
        state = step(r.cell, r.inputs[:, t], r.weights, state)
        states.append(state)
    return torch.stack(states, dim=1) if states else r.inputs.new_zeros(batch, 0, *shape)


@pytest.fixture(scope="session")
def make_recurrence() -> Callable[..., Recurrence]:
    """`make_recurrence(cell, batch, time, channels, sequences=…, initial=…, std=…, seed=…)`."""
    return draw


@pytest.fixture(scope="session")
def recurrence_oracle() -> Callable[..., Tensor]:
    """`recurrence_oracle(recurrence, bounds=…)` in the dtype of its tensors."""
    return steps


@pytest.fixture(params=list(GATES))
def cell(request: pytest.FixtureRequest) -> str:
    return request.param
