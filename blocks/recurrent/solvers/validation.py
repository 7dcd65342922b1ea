"""What `solve` and `iterate` refuse, and in which words: expected, got, how to mend it."""

import torch
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.recurrent.cells import Cell
from ropewalk.blocks.recurrent.cells.gated import GatedCell
from ropewalk.blocks.recurrent.solvers.gradients import GRADIENTS
from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.packing import check_numbers, count_sequences

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_cell_kind(cell: object) -> None:
    """Refuses what is not a `Cell`."""
    if not isinstance(cell, Cell):
        name = cell.__name__ if isinstance(cell, type) else type(cell).__name__
        raise TypeError(
            f"cell: expected a Cell, got {name}; make one of a function with "
            "FunctionCell(function, state_size, structure=…)"
        )


def check_inputs(inputs: object, finite: bool) -> Tensor:
    """A floating-point tensor (batch, time, dim), of finite numbers if they have to be."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs: expected a tensor, got {type(inputs).__name__}")
    if inputs.ndim < 3:
        raise ValueError(
            f"inputs: expected (batch, time, dim), got {tuple(inputs.shape)}; a single sequence "
            "needs a batch of its own, inputs[None]"
        )
    if inputs.dtype not in DTYPES:
        raise ValueError(f"inputs: expected a floating-point dtype, got {inputs.dtype}")
    if finite:
        check_finite("inputs", inputs, "mask padding before, or look for what made them")
    return inputs


def check_finite(name: str, x: Tensor, mend: str) -> None:
    """Refuses NaN and infinity, where values can be looked at."""
    if torch.compiler.is_compiling() or x.is_meta or x.numel() == 0:
        return
    finite = x.detach().isfinite()
    if not bool(finite.all()):
        first = tuple(int(i) for i in (~finite).nonzero()[0])
        raise ValueError(
            f"{name}: expected finite numbers, got {float(x.detach()[first])} at {first}; {mend}"
        )


def check_weights(cell: Cell) -> None:
    """Refuses NaN and infinity in parameters, those of a layer's cells as well."""
    named = dict(cell.named_parameters())
    if isinstance(cell, GatedCell):  # a layer's has none of its own
        weights = {name: getattr(cell, name) for name in WEIGHTS}
        named |= {name: weight for name, weight in weights.items() if weight is not None}
    for name, parameter in named.items():
        check_finite(f"cell.{name}", parameter, "look for what made them in training")


def check_concrete(x: Tensor) -> None:
    """Refuses to solve where there are no numbers, and so no residual."""
    if x.is_meta or torch.compiler.is_compiling():
        where = "a compiler" if torch.compiler.is_compiling() else "the meta device"
        raise RuntimeError(
            f"solve: expected numbers to look at, got {where}; iterate(…, iterations=k) takes a "
            "fixed number of iterations there, and newton_scan solves built-in diagonal cells"
        )


def check_states(
    cell: Cell,
    inputs: Tensor,
    drive: Tensor,
    initial: object,
    guess: object,
    cu_seqlens: Tensor | None,
    finite: bool,
) -> None:
    """Shapes, dtypes and devices of what has to fit the drive."""
    batch, time = inputs.shape[:2]
    if drive.shape[:2] != inputs.shape[:2]:
        raise ValueError(
            f"cell.project: expected ({batch}, {time}, …), got {tuple(drive.shape)}; leave batch "
            "and time as they are"
        )
    sequences = count_sequences(cu_seqlens, drive)
    if cu_seqlens is not None and not (torch.compiler.is_compiling() or cu_seqlens.is_meta):
        check_numbers("cu_seqlens", cu_seqlens, time)
    shapes = {
        "initial_state": (initial, (sequences, *cell.state_shape)),
        "guess": (guess, (batch, time, *cell.state_shape)),
    }
    for name, (x, shape) in shapes.items():
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if tuple(x.shape) != shape:
            what = "a state for each sequence" if name == "initial_state" else "one for each step"
            raise ValueError(f"{name}: expected {shape}, {what}, got {tuple(x.shape)}")
        if x.dtype not in DTYPES or x.device != drive.device:
            raise ValueError(
                f"{name}: expected a floating-point tensor on {drive.device}, as the inputs are, "
                f"got {x.dtype} on {x.device}"
            )
        if name == "initial_state" and x.dtype == torch.float64 != drive.dtype:
            raise ValueError(
                f"initial_state: expected {wide(drive.dtype)} or narrower, as the states of these "
                f"inputs are calculated, got {x.dtype}; convert it by .to({drive.dtype}), or the "
                "inputs and the cell by .double()"
            )
        if finite:
            check_finite(name, x, "start from finite states")


def check_options(
    *,
    window: object,
    tolerance: object,
    max_iterations: object,
    strict: object,
    gradient: object,
    dtype: torch.dtype,
) -> None:
    """Numbers in their ranges, and names that exist."""
    for name, number in (("window", window), ("max_iterations", max_iterations)):
        if number is not None:
            require_integer("solve", 1, **{name: number})  # pyright: ignore[reportArgumentType]
    if tolerance is not None:
        require_positive("solve", tolerance=tolerance)  # pyright: ignore[reportArgumentType]
        least = torch.finfo(dtype).eps * (1 if dtype == wide(dtype) else 4)
        if tolerance < least:  # pyright: ignore[reportOperatorIssue]
            raise ValueError(
                f"solve.tolerance: expected at least {least:.3g}, what {dtype} can tell apart, got "
                f"{tolerance}; use wider inputs, or None for what suits the dtype"
            )
    if not isinstance(strict, bool):
        raise TypeError(f"strict: expected True or False, got {strict!r}")
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient: expected one of {', '.join(GRADIENTS)}, got {gradient!r}")
