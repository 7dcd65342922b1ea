"""`Cell`: one step of a nonlinear recurrence, h_t = f(h_{t−1}, x_t), as solvers need it.

A step is taken in two parts. What does not depend on the state is computed for all times at once:

    drive = project(inputs)            (batch, time, …)
    h_t = step(h_{t−1}, drive_t)

and solvers ask for the Jacobian ∂h_t/∂h_{t−1} in the form that the cell's `structure` declares:

    structure    state            jacobian
    diagonal     (hidden,)        (…, hidden)                  a channel depends on itself
    block2       (2, hidden)      (…, 2, 2, hidden)            two states to a channel
    dense        (size,)          (…, size, size)

[…, i, j] = ∂h'_i/∂h_j, in block2 for every channel by itself.

A new cell gives `project`, `step` and `jacobian`; `check_cell` finds a formula or a structure that
is wrong. A function is made a cell by `FunctionCell`, without a formula.
"""

import math
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

Structure = Literal["diagonal", "block2", "dense"]
STRUCTURES: tuple[str, ...] = get_args(Structure)


class Cell(nn.Module):
    """What solvers need to know of a recurrence.

    Attributes:
        structure: the form of the Jacobian: "diagonal", "block2" or "dense".
        input_size: dim of the inputs; None where the cell takes any.
        hidden_size: of `output`.
        state_shape: (hidden,) if diagonal, (2, hidden) if block2, (size,) if dense.
        kernel: the name of the built-in cell in `ropewalk.kernels.newton_scan` that computes the
            same from `project` and `kernel_weights`; None where there is none.
        mixed_precision: whether `step` and `jacobian` take states and drives in float32 while the
            parameters are in half precision. Solvers then do so.
    """

    kernel: str | None = None
    mixed_precision: ClassVar[bool] = False

    structure: Structure
    input_size: int | None
    hidden_size: int
    state_shape: tuple[int, ...]

    @property
    def state_size(self) -> int:
        """How many numbers a state has."""
        return math.prod(self.state_shape)

    def project(self, inputs: Float[Tensor, "batch time dim"]) -> Tensor:
        """All of a step that does not depend on the state, for all times at once.

        A sub-class may return any trailing shape; its first two dimensions are the inputs'.
        """
        raise NotImplementedError

    def step(self, state: Float[Tensor, "*states"], drive: Tensor) -> Float[Tensor, "*states"]:
        """The next state, for any leading dimensions, each independent of the others."""
        raise NotImplementedError

    def jacobian(self, state: Float[Tensor, "*states"], drive: Tensor) -> Tensor:
        """∂step/∂state, in the form of `structure`."""
        raise NotImplementedError

    def prepared(self, dtype: torch.dtype) -> "Cell":
        """The cell for many steps on states in `dtype`: weights that it makes are made once.

        If that is another object, it keeps the weights of now for good, whatever becomes of the
        cell's parameters until the backward: an optimiser or `torch.func.functional_call` may
        change them. A cell that has nothing to make returns itself, and then its Jacobians are
        kept for the backward.
        """
        return self

    def output(self, state: Float[Tensor, "*states"]) -> Float[Tensor, "*batch hidden"]:
        """What a layer shows of a state; all of it, unless a cell says otherwise."""
        return state

    def named_weights(self) -> dict[str, Tensor]:
        """The recurrent weights that a step takes, by the names of the cell's equations.

        Those of a bounded cell are made of its parameters. A cell of one's own need not tell any.
        """
        return {}

    def kernel_weights(self) -> Float[Tensor, "rows channels"]:
        """The effective weights, as `ropewalk.kernels.newton_scan` takes them."""
        raise TypeError(
            f"{type(self).__name__}: expected a built-in diagonal cell; it has no kernel"
        )
