"""`FunctionCell`: a user's own recurrence, given as a function and the structure of its Jacobian.

    h_t = function(h_{t−1}, x_t)

Without a formula the Jacobian comes from `torch.func`, in reverse mode, which asks less of the
function than forward mode and starts five times sooner: a diagonal one takes a single product 1ᵀJ,
a block2 one two, a dense one as many as the state has numbers. These are right only if the
structure is as declared. A wrong one leaves the solution's states right, but its gradients are
wrong, whatever the method: they go through the Jacobian. `solve` looks at it once, at a few
positions; `check_cell` looks closer.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.recurrent.cells.cell import STRUCTURES, Cell, Structure

Step = Callable[[Tensor, Tensor], Tensor]


class FunctionCell(Cell):
    """A cell made of a function; parameters that it closes over, or has as a module, get gradients.

    Gradients depend on `structure`, or on the formula, being right, also where the states do not:
    `check_cell` tells whether they are.

    Example:
        >>> decay = torch.full((3,), 0.9)
        >>> cell = FunctionCell(lambda h, x: torch.sin(decay * h + x), 3, structure="diagonal")
        >>> check_cell(cell, torch.randn(1, 4, 3))

    Attributes:
        function: as given; if it is a module, its parameters are the cell's.

    Args:
        function: (state (*batch, *state_shape), drive (*batch, …)) ↦ the next state, for any
            leading dimensions, none of which it may mix.
        state_size: of a state (size,). Of a block2 cell, the number of channels: (2, size).
        structure: of ∂function/∂state: "diagonal", "block2" or "dense".
        state_shape: instead of `state_size`.
        jacobian: the formula, (state, drive) ↦ (*batch, size), (*batch, 2, 2, size) or
            (*batch, size, size); None has it computed.
        project: inputs (batch, time, dim) ↦ drive (batch, time, …), what the function takes; the
            inputs themselves if None.
        output: state ↦ what a layer shows of it; None shows a diagonal or dense state, and the
            second half of a block2 one, the h of [c, h].
        input_size: dim of the inputs, if it shall be checked.

    Raises:
        ValueError: an unknown structure, a state shape that it does not have, a size below 1.
        TypeError: an argument of the wrong kind.
    """

    def __init__(
        self,
        function: Step,
        state_size: int | None = None,
        *,
        structure: Structure,
        state_shape: tuple[int, ...] | None = None,
        jacobian: Step | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
        output: Callable[[Tensor], Tensor] | None = None,
        input_size: int | None = None,
    ) -> None:
        super().__init__()
        for name, given in (("function", function), ("jacobian", jacobian), ("project", project)):
            if not callable(given) and (given is not None or name == "function"):
                raise TypeError(f"{name}: expected a function, got {type(given).__name__}")
        if output is not None and not callable(output):
            raise TypeError(f"output: expected a function, got {type(output).__name__}")
        if structure not in STRUCTURES:
            raise ValueError(
                f"structure: expected one of {', '.join(STRUCTURES)}, got {structure!r}"
            )
        if input_size is not None:
            require_integer("FunctionCell", 1, input_size=input_size)
        self.structure, self.input_size = structure, input_size
        self.state_shape = _state_shape(state_size, state_shape, structure)
        self.hidden_size = self.state_shape[-1]
        self.function, self.formula = function, jacobian
        self.projection, self.shown = project, output

    def project(self, inputs: Tensor) -> Tensor:
        """See `Cell.project`."""
        if self.input_size is not None and inputs.shape[-1:] != (self.input_size,):
            raise ValueError(
                f"inputs: expected (..., {self.input_size}), got {tuple(inputs.shape)}"
            )
        if self.projection is None:
            return inputs
        try:
            return self.projection(inputs)
        except RuntimeError as error:
            raise ValueError(
                f"inputs: expected what project= takes, got {tuple(inputs.shape)} in "
                f"{inputs.dtype}, of which it says: {error}"
            ) from error

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.step`."""
        return self.function(state, drive)

    def jacobian(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.jacobian`."""
        if self.formula is not None:
            return self.formula(state, drive)
        return structured_jacobian(self.function, state, drive, self.structure)

    def output(self, state: Tensor) -> Tensor:
        """See `Cell.output`."""
        if self.shown is not None:
            return self.shown(state)
        return state[..., 1, :] if self.structure == "block2" else state

    def extra_repr(self) -> str:
        """State, structure, and where the Jacobian comes from."""
        source = "torch.func" if self.formula is None else "formula"
        return f"state_shape={self.state_shape}, structure={self.structure}, jacobian={source}"


def _state_shape(
    size: int | None, shape: tuple[int, ...] | None, structure: str
) -> tuple[int, ...]:
    if (size is None) == (shape is None):
        raise TypeError("expected either state_size or state_shape")
    if size is not None:
        require_integer("FunctionCell", 1, state_size=size)
        return (2, size) if structure == "block2" else (size,)
    if not isinstance(shape, tuple | list) or not all(isinstance(n, int) for n in shape):
        raise TypeError(f"state_shape: expected a tuple of integers, got {shape!r}")
    block = structure == "block2"
    if len(shape) != (2 if block else 1) or min(shape) < 1 or (block and shape[0] != 2):
        expected = "(2, channels)" if block else "(size,)"
        raise ValueError(f"state_shape: expected {expected} for {structure}, got {tuple(shape)}")
    return tuple(shape)


def structured_jacobian(function: Step, state: Tensor, drive: Tensor, structure: str) -> Tensor:
    """∂function/∂state, taking its structure for granted; see `Cell.jacobian` for the shapes."""
    pullback = torch.func.vjp(lambda h: function(h, drive), state)[1]

    def against(direction: Tensor) -> Tensor:
        return pullback(direction.expand_as(state).contiguous())[0]

    if structure == "diagonal":
        return against(torch.ones_like(state))
    size = 2 if structure == "block2" else state.shape[-1]
    basis = torch.eye(size, dtype=state.dtype, device=state.device)
    if structure == "block2":
        return torch.stack([against(row[:, None]) for row in basis], -3)
    return torch.func.vmap(against, out_dims=-2)(basis)
