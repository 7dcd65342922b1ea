"""What a user's own cell is asked before it is solved: shapes, dtypes, its Jacobian's structure.

A wrong structure or formula leaves the states right and makes their gradient wrong without a sign.
So the first solution of a cell compares, at a few positions, the derivative of a step along a
random direction v with the product J v of the Jacobian as it is declared. That costs a few steps,
once for every cell, structure, dtype and shape of drive. `check_cell` looks closer.

States are those of the first steps, moved a little at random: they lie where the cell is defined,
and not at the corner that many functions have at zero.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ropewalk.blocks.recurrent.cells import Cell
from ropewalk.blocks.recurrent.cells.function import FunctionCell
from ropewalk.blocks.recurrent.cells.gated import GatedCell
from ropewalk.blocks.recurrent.solvers.system import System, times, transposed
from ropewalk.blocks.recurrent.solvers.validation import check_finite, check_weights

POSITIONS = 8
MOVED = 0.3
"""Standard deviation of what is added to states."""

SHAPES = {
    "diagonal": "(*batch, {0})",
    "block2": "(*batch, 2, 2, {0})",
    "dense": "(*batch, {0}, {0})",
}

_probed: WeakKeyDictionary[Cell, set[tuple[Any, ...]]] = WeakKeyDictionary()


@torch.no_grad()
def probe(system: System) -> None:
    """Refuses a user's cell that does not do what it declares; once for each.

    Raises:
        ValueError: a step or a Jacobian of another shape or dtype, a step that takes no leading
            dimensions, or a Jacobian that is not the one of the step.
    """
    cell, drive = system.cell, system.drive
    if isinstance(cell, GatedCell) or torch.compiler.is_compiling() or drive.is_meta:
        return
    if 0 in drive.shape[:2]:
        return
    key = (cell.structure, drive.dtype, *drive.shape[2:])
    known = _probed.setdefault(cell, set())
    if key in known:
        return
    drive = drive.detach()[:1, :POSITIONS]
    state = _trajectory(cell, system.initial.detach()[:1], drive)
    generator = torch.Generator().manual_seed(0)
    state, direction = _moved(cell, state, drive, generator)
    _check_jacobian(cell, state, drive, direction)
    known.add(key)


@torch.no_grad()
def check_first_states(system: System) -> None:
    """Refuses weights and first states that are not finite, before anything is iterated.

    Raises:
        ValueError: NaN or infinity.
    """
    cell, drive, layout = system.cell, system.drive.detach(), system.layout
    check_weights(cell)
    if isinstance(cell, GatedCell) or 0 in drive.shape[:2]:
        return  # finite inputs and weights have finite states
    initial = system.initial.detach()
    if layout.cu_seqlens is None:
        drive = drive[:, 0]
    else:
        begins = layout.cu_seqlens.diff() > 0
        initial, drive = initial[begins], drive[0, layout.cu_seqlens[:-1][begins].long()]
    check_finite(
        "cell.step: the states after the first step",
        cell.step(initial, drive),
        "the cell makes them of finite states and inputs: look at its parameters and its formula, "
        "or run check_cell",
    )


def _trajectory(cell: Cell, state: Tensor, drive: Tensor) -> Tensor:
    """The states before the first steps, (1, steps, *state_shape)."""
    states = []
    for t in range(drive.shape[1]):
        states.append(state)
        state = _step(cell, state, drive[:, t])
    return torch.stack(states, 1)


def _step(cell: Cell, state: Tensor, drive: Tensor) -> Tensor:
    """One step, of the shape and dtype of the state."""
    made = _asked("cell.step", cell, lambda: cell.step(state, drive), state, drive)
    if not isinstance(made, Tensor) or made.shape != state.shape:
        got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(
            f"cell.step: expected a state of shape {tuple(state.shape)} for a state of this shape "
            f"and a drive {tuple(drive.shape)}, got {got}; state_shape is {cell.state_shape}, and "
            "the function returns the next state alone"
        )
    if made.dtype != state.dtype:
        raise ValueError(
            f"cell.step: expected {state.dtype}, the dtype of cell.project(inputs), got "
            f"{made.dtype}; convert the inputs, or compute in the state's dtype, as by "
            "weight.to(state.dtype)"
        )
    return made


def _asked(what: str, cell: Cell, call: Callable[[], Any], state: Tensor, drive: Tensor) -> Any:
    """What the call returns, or an error that says what it was given."""
    try:
        return call()
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        lead = state.ndim - len(cell.state_shape)
        said = f"{type(error).__name__}: {error}".split("\n")[0]
        if lead > 1:
            raise ValueError(
                f"{what}: expected a function that takes states and drives with any leading "
                f"dimensions, {tuple(state.shape)} and {tuple(drive.shape)}, got {said}; wrap it: "
                "lambda h, x: function(h.flatten(0, -2), x.flatten(0, -2))"
                ".unflatten(0, h.shape[:-1])"
            ) from error
        raise ValueError(
            f"{what}: expected a function of states {tuple(state.shape)} and drives "
            f"{tuple(drive.shape)}, got {said}; what the inputs' last dimension has to be is said "
            "by input_size=, and project= makes another one of it"
        ) from error


def _moved(
    cell: Cell, state: Tensor, drive: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """States near these with finite next ones, and directions."""
    noise, direction = (
        torch.randn(state.shape, generator=generator).to(state.device, state.dtype)
        for _ in range(2)
    )
    moved = state + MOVED * noise
    finite = _step(cell, moved, drive).isfinite().flatten(2).all(2)
    finite = finite.view(*finite.shape, *[1] * len(cell.state_shape))
    return torch.where(finite, moved, state), direction


def _check_jacobian(cell: Cell, state: Tensor, drive: Tensor, direction: Tensor) -> None:
    own = isinstance(cell, FunctionCell) and cell.formula is None
    if own and cell.structure == "dense":
        return  # of any function, and of the shape that it has
    truth = _derivative(cell, state, drive, direction)
    if truth is None:
        return
    along, transpose = truth
    found = cell.jacobian(state, drive) if own else _formula(cell, state, drive)
    size = cell.state_shape[-1]
    expected = {"diagonal": (size,), "block2": (2, 2, size), "dense": (size, size)}[cell.structure]
    shape = (*state.shape[: -len(cell.state_shape)], *expected)
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"cell.jacobian: expected {shape}, {SHAPES[cell.structure].format(size)} of structure "
            f"{cell.structure!r}, got {got}; return that shape, or declare another structure"
        )
    a = transposed(found, cell.structure) if transpose else found
    product = times(a, direction, cell.structure)
    scale = times(a.abs(), direction.abs(), cell.structure)
    eps = torch.finfo(state.dtype).eps
    limit = (200 if eps < 1e-4 else 50) * eps * (1 + torch.maximum(scale, along.abs()))
    wrong = (product - along).abs() > limit  # not where one is NaN
    if not bool(wrong.any()):
        return
    if not torch.allclose(cell.step(state, drive), cell.step(state, drive), rtol=1e-3, atol=1e-3):
        raise ValueError(
            "cell.step: expected the same state at every call, got another; take dropout and other "
            "chance out of it"
        )
    off = float((product - along).abs()[wrong].max())
    what = f"a Jacobian of structure {cell.structure!r}, on which gradients depend,"
    if own:
        raise ValueError(
            f"structure: expected {what} got a function with derivatives outside it (along a "
            f"random direction {off:.3g} is missing); declare 'dense', or 'block2' for two states "
            "to a channel, or mix neither channels nor batch entries; check_cell(cell, inputs) "
            "says more"
        )
    raise ValueError(
        f"cell.jacobian: expected {what} got one that is {off:.3g} off along a random direction; "
        "mend the formula or the structure, or leave jacobian= out; check_cell(cell, inputs) says "
        "more"
    )


def _formula(cell: Cell, state: Tensor, drive: Tensor) -> Tensor:
    return _asked("cell.jacobian", cell, lambda: cell.jacobian(state, drive), state, drive)


def _derivative(
    cell: Cell, state: Tensor, drive: Tensor, direction: Tensor
) -> tuple[Tensor, bool] | None:
    """J v, or Jᵀ v and True of a function without forward mode; None of one without derivatives."""

    def step(h: Tensor) -> Tensor:
        return cell.step(h, drive)

    try:
        return torch.func.jvp(step, (state,), (direction,))[1], False
    except (RuntimeError, NotImplementedError):
        pass
    try:
        with torch.enable_grad():
            return torch.func.vjp(step, state)[1](direction)[0], True
    except (RuntimeError, NotImplementedError):
        return None
