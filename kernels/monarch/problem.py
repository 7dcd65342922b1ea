"""What an implementation gets and what it gives.

An implementation is a module with two functions:

    forward(problem, keep_hidden) -> (y, hidden)
    backward(problem, hidden, y_grad, needs) -> Gradients

y is contiguous, (tokens, l·s) or, block-major, (l, tokens, s). `hidden` holds the values between
the two products, flat, (tokens · width,) in the dtype of x and in an order that is the
implementation's own; none where it was not to be kept. The pre-activation is kept nowhere: the
backward computes it again from `hidden`.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A batch of rows, and the factors that they are multiplied by.

    With k input blocks of p features, l output blocks of s features and slices of rank r:

    Attributes:
        x: (tokens, k, p), of any strides.
        right: (k, l·r, p), of any strides: a mirrored product has the transposed left factor here.
        left: (l, s, k·r), of any strides.
        bias: (l·s,), or none.
        activation: one of `ACTIVATIONS`, or none.
        block_major: whether y is (l, tokens, s) and not (tokens, l·s).
    """

    x: Tensor
    right: Tensor
    left: Tensor
    bias: Tensor | None = None
    activation: str | None = None
    block_major: bool = False

    @property
    def tokens(self) -> int:
        return self.x.shape[0]

    @property
    def input_blocks(self) -> int:
        """The number k."""
        return self.x.shape[1]

    @property
    def input_size(self) -> int:
        """Features of an input block, p."""
        return self.x.shape[2]

    @property
    def output_blocks(self) -> int:
        """The number l."""
        return self.left.shape[0]

    @property
    def output_size(self) -> int:
        """Features of an output block, s."""
        return self.left.shape[1]

    @property
    def rank(self) -> int:
        """Of a slice, r."""
        return self.right.shape[1] // self.output_blocks

    @property
    def width(self) -> int:
        """Hidden values of a token, k·l·r."""
        return self.right.shape[0] * self.right.shape[1]

    def mirrored(self, z_grad: Tensor) -> "Problem":
        """The product whose result is the gradient of x: Mᵀ, a Monarch matrix too.

        Args:
            z_grad: (tokens, l, s), the gradient of what the activation takes.
        """
        return Problem(z_grad, self.left.mT, self.right.mT)

    def blocks_of(self, y: Tensor) -> Tensor:
        """(tokens, l, s), a view of something that is laid out as the result is."""
        if self.block_major:
            return y.transpose(0, 1)
        return y.unflatten(-1, (self.output_blocks, self.output_size))


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    right: bool
    left: bool
    bias: bool


class Gradients(NamedTuple):
    """Those that were wanted, none elsewhere; of the shapes and dtypes of what they belong to."""

    x: Tensor | None
    right: Tensor | None
    left: Tensor | None
    bias: Tensor | None
