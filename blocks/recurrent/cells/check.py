"""`check_cell`: whether a cell keeps its word to the solvers.

If a declared Jacobian structure is wrong, Newton's iteration becomes a slower one that still ends
at the solution, but gradients become wrong without a sign. `solve` looks at it once, along one
direction at a few states. Here a cell of one's own is compared with whole Jacobians from
reverse-mode autograd at random states.
"""

import torch
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.recurrent.cells.cell import STRUCTURES, Cell


@torch.no_grad()
def check_cell(
    cell: Cell,
    inputs: Tensor | None = None,
    *,
    scale: float = 1.0,
    samples: int = 5,
    seed: int = 0,
) -> None:
    """Raises unless a cell is what it declares.

    It is checked that a step has the right shape and dtype, is finite, gives the same twice, and
    takes leading dimensions apart; that `project` looks at one time only; that no derivative lies
    outside the declared structure; and that `jacobian` equals autograd's.

    Args:
        cell: any cell.
        inputs: (batch, time, dim), what to check it with. None draws normal ones, for which the
            cell must tell its `input_size`.
        scale: standard deviation of the states that are tried.
        samples: how many states are tried.
        seed: of what is drawn; torch's own generator is left as it is.

    Raises:
        TypeError: not a cell, or an argument of the wrong kind.
        ValueError: what is wrong with the cell.
    """
    if not isinstance(cell, Cell):
        raise TypeError(
            f"cell: expected a Cell, got {type(cell).__name__}; make one of a function with "
            "FunctionCell(function, state_size, structure=…)"
        )
    require_integer("check_cell", 1, samples=samples)
    _check_declaration(cell)
    generator = torch.Generator().manual_seed(seed)
    like = next((p for p in cell.parameters() if p.is_floating_point()), torch.empty(0))
    if inputs is None:
        if cell.input_size is None:
            raise ValueError(
                "inputs: expected some, (batch, time, dim); the cell tells no input_size"
            )
        inputs = torch.randn(2, 3, cell.input_size, generator=generator).to(like)
    drive = _check_projection(cell, inputs)
    state = scale * torch.randn((samples, *cell.state_shape), generator=generator)
    state = state.to(device=drive.device, dtype=drive.dtype)
    flat = drive.flatten(0, 1)
    drive = flat[torch.arange(samples, device=flat.device) % len(flat)]
    _check_step(cell, state, drive)
    _check_jacobian(cell, state, drive)


def _fail(what: str, expected: str, got: str, mend: str) -> None:
    raise ValueError(f"{what}: expected {expected}, got {got}; {mend}")


def _tolerance(x: Tensor) -> float:
    return 200 * torch.finfo(x.dtype).eps


def _differ(got: Tensor, expected: Tensor) -> float:
    """The greatest difference, relative where values are above 1; infinite if one is not finite."""
    difference = ((got - expected).abs() / expected.abs().clamp_min(1)).max()
    return float(difference) if bool(difference.isfinite()) else float("inf")


def _check_declaration(cell: Cell) -> None:
    structure, shape = getattr(cell, "structure", None), getattr(cell, "state_shape", None)
    if structure not in STRUCTURES:
        _fail(
            "structure", f"one of {', '.join(STRUCTURES)}", repr(structure), "set it on the class"
        )
    block = structure == "block2"
    if not isinstance(shape, tuple) or len(shape) != 1 + block or (block and shape[0] != 2):
        expected = "(2, channels)" if block else "(size,)"
        _fail("state_shape", f"{expected} for {structure}", repr(shape), "flatten other states")


def _check_projection(cell: Cell, inputs: Tensor) -> Tensor:
    if not isinstance(inputs, Tensor) or inputs.ndim != 3 or 0 in inputs.shape:
        got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs: expected (batch, time, dim), none of them 0, got {got}")
    drive = cell.project(inputs)
    if drive.shape[:2] != inputs.shape[:2]:
        shape = f"({inputs.shape[0]}, {inputs.shape[1]}, …)"
        _fail("project", shape, str(tuple(drive.shape)), "leave batch and time as they are")
    if not bool(drive.isfinite().all()):
        _fail("project", "finite numbers", "NaN or infinity", "look at the inputs and weights")
    if not torch.equal(drive, cell.project(inputs)):
        _fail("project", "the same at every call", "another drive", "call cell.eval() before")
    if _differ(cell.project(inputs[:, :1]), drive[:, :1]) > _tolerance(drive):
        _fail(
            "project", "each time by itself", "another drive without the later ones", "mix no times"
        )
    return drive


def _check_step(cell: Cell, state: Tensor, drive: Tensor) -> None:
    made = cell.step(state, drive)
    if made.shape != state.shape:
        _fail("step", f"a state {tuple(state.shape)}", str(tuple(made.shape)), "return a state")
    if made.dtype != state.dtype:
        _fail("step", str(state.dtype), str(made.dtype), "compute in the state's dtype")
    if not bool(made.isfinite().all()):
        _fail("step", "finite states", "NaN or infinity", "look at the formula and its weights")
    if not torch.equal(made, cell.step(state, drive)):
        _fail("step", "the same at every call", "another state", "take dropout out of the step")
    alone = torch.stack([cell.step(*one) for one in zip(state, drive, strict=True)])
    if _differ(alone, made) > _tolerance(made):
        _fail("step", "each batch entry by itself", "another state when alone", "mix no entries")


def _check_jacobian(cell: Cell, state: Tensor, drive: Tensor) -> None:
    truth = _dense(lambda h: cell.step(h, drive), state)
    if not bool(truth.isfinite().all()):
        _fail("step", "finite derivatives", "NaN or infinity", "mind what has a pole, as sqrt at 0")
    expected, outside = split(truth, cell.structure, cell.state_shape)
    limit = _tolerance(truth) * (1 + float(truth.abs().max()))
    if float(outside) > limit:
        _fail(
            f"structure {cell.structure!r}",
            "no derivative outside it",
            f"one of {float(outside):.3g}",
            "declare 'dense', or 'block2' for two states to a channel, or mix no channels",
        )
    found = cell.jacobian(state, drive)
    if found.shape != expected.shape:
        shape = str(tuple(expected.shape))
        _fail("jacobian", shape, str(tuple(found.shape)), "see Cell.jacobian for the shapes")
    error = _differ(found, expected)
    if not error <= limit:
        _fail(
            "jacobian", "autograd's derivatives", f"one that is {error:.3g} off", "mend the formula"
        )


def _dense(step, state: Tensor) -> Tensor:
    """Jacobians of every batch entry, (batch, size, size), by reverse mode, a row at a time."""
    with torch.enable_grad():
        leaf = state.detach().requires_grad_()
        made = step(leaf).flatten(1)
        if not made.requires_grad:
            return torch.zeros(len(state), made.shape[1], made.shape[1]).to(state)
        rows = [
            torch.autograd.grad(made[:, i].sum(), leaf, retain_graph=True, allow_unused=True)[0]
            for i in range(made.shape[1])
        ]
    zero = torch.zeros_like(state)
    return torch.stack([(zero if row is None else row).flatten(1) for row in rows], 1)


def split(dense: Tensor, structure: str, state_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A dense Jacobian (…, size, size) in the form of a structure, and what is greatest outside."""
    if structure == "dense":
        return dense, dense.new_zeros(())
    if structure == "diagonal":
        inside = dense.diagonal(dim1=-2, dim2=-1)
        return inside, (dense - torch.diag_embed(inside)).abs().max()
    channels = state_shape[-1]
    blocks = dense.unflatten(-1, (2, channels)).unflatten(-3, (2, channels))
    inside = blocks.diagonal(dim1=-3, dim2=-1)  # (…, 2, 2, channels)
    outside = blocks - torch.diag_embed(inside, dim1=-3, dim2=-1)
    return inside, outside.abs().max()
