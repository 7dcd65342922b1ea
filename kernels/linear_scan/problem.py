"""What an implementation gets and what it gives.

An implementation is a module with two functions:

    forward(problem) -> states
    backward(problem, states, grad, needs) -> Gradients

States are contiguous and have the shape and dtype of b. The backward is one pass against the
direction of the forward: with g the adjoint of the states,

    g_t = grad_t + a_(t+1)ᴴ g_(t+1)
    b_grad = g    a_grad_t = g_t x_(t−1)ᴴ    initial_grad = a_1ᴴ g_1
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

Structure = Literal["diagonal", "block2", "dense"]


@dataclass(frozen=True)
class Problem:
    """A batch of linear recurrences x_t = a_t x_(t−1) + b_t.

    Attributes:
        a: (batch, time, channels), (batch, time, 2, 2, channels) or (batch, time, channels,
            channels), of any strides: 0 where it was broadcast.
        b: (batch, time, channels), for blocks (batch, time, 2, channels), of any strides. A
            backward gets the states here, of which it may look at the shape and dtype alone.
        initial: the states before the first steps (after the last, if reversed), (sequences,
            channels) or (sequences, 2, channels), or none for zeros.
        reverse: whether x_t follows from x_(t+1).
        cu_seqlens: (sequences + 1,) int32, where packed sequences begin; then batch is 1.
    """

    a: Tensor
    b: Tensor
    initial: Tensor | None = None
    reverse: bool = False
    cu_seqlens: Tensor | None = None

    @property
    def structure(self) -> Structure:
        if self.a.ndim == 5:
            return "block2"
        return "dense" if self.a.ndim == 4 else "diagonal"

    @property
    def batch(self) -> int:
        return self.b.shape[0]

    @property
    def time(self) -> int:
        return self.b.shape[1]

    @property
    def channels(self) -> int:
        return self.b.shape[-1]

    @property
    def sequences(self) -> int:
        """Rows of the batch, or packed sequences."""
        return self.batch if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1


class Needs(NamedTuple):
    """Which gradients are wanted."""

    a: bool
    b: bool
    initial: bool


class Gradients(NamedTuple):
    """Those that were wanted, none elsewhere; of the shapes and dtypes of what they belong to."""

    a: Tensor | None
    b: Tensor | None
    initial: Tensor | None
