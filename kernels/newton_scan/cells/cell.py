"""What a cell has."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cell:
    """A step of a recurrence that is elementwise along channels.

    Attributes:
        name: as `newton_scan` takes it.
        gates: what a step gets, in order.
        rows: the weights, in order.
        parts: 1, or 2 where a state has two numbers a channel.
        step: (x, state, w) → the next state.
        linearise: (x, state, w) → the next state and its Jacobian (…, channels) or (…, 2, 2,
            channels).
        pullback: (x, state, w, g) → gradients of x and of w, where g is the gradient of the next
            state; the gradients of w are summed over all leading dimensions. What reaches the state
            is the Jacobian's part.
    """

    name: str
    gates: tuple[str, ...]
    rows: tuple[str, ...]
    parts: int
    step: Callable[[Tensor, Tensor, Tensor], Tensor]
    linearise: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    pullback: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

    def state_shape(self, channels: int) -> tuple[int, ...]:
        """Of one state."""
        return (channels,) if self.parts == 1 else (self.parts, channels)


def summed(*terms: Tensor) -> Tensor:
    """Gradients of the weights (rows, channels) from their terms (…, channels)."""
    return torch.stack([term.flatten(0, -2).sum(0) for term in terms])
