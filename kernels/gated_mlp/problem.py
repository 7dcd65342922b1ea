"""What an implementation gets and what it gives.

An implementation is a module with two functions:

    forward(projected, form) -> activated
    backward(projected, activated_grad, form, want_activated) -> (projected_grad, activated or none)

`projected` is (rows, width), neighbours within a row lie together, rows at any distance; so is the
gradient that comes. What is made is contiguous, in the dtype of `projected`.
"""

from typing import NamedTuple

from torch import Tensor


class Form(NamedTuple):
    """What lies between the two products.

    Attributes:
        activation: one of `ACTIVATIONS`.
        gated: whether it is act(gate) · up of the halves, and not the activation of all.
    """

    activation: str
    gated: bool

    def hidden(self, width: int) -> int:
        """Features after the activation of so many before it."""
        return width // 2 if self.gated else width


def by_rows(x: Tensor) -> Tensor:
    """Of x (…, width) a view (rows, width) of contiguous rows, or a copy where there is none."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
