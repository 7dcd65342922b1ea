"""Built-in diagonal cells through the fused scan, `ropewalk.kernels.newton_scan`.

It iterates in windows of its own choice, or steps in turn where that is faster, and always ends
exact unless `max_iterations` is below the window. It has its own gradient, of the solution.
"""

from typing import Any, cast

from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.recurrent.cells import Cell
from ropewalk.blocks.recurrent.solvers.system import System
from ropewalk.blocks.recurrent.solvers.windows import Course, Limits
from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.newton_scan import CellName, Scanned, newton_scan
from ropewalk.kernels.newton_scan.problem import TOLERANCE, Algorithm


def scanned(
    cell: Cell,
    drive: Float[Tensor, "batch time gates hidden"],
    initial: Float[Tensor, "sequences ..."],
    **options: Any,
) -> Scanned:
    """The fused scan of a cell.

    Args:
        cell: one with a kernel.
        drive: of `cell.project`; weights and states may be wider than it is in half precision.
        initial: the states before.
        **options: see `newton_scan`.
    """
    if cell.kernel is None:
        raise ValueError(f"{type(cell).__name__}: expected a cell with a kernel")
    weights, initial = (
        x if x.dtype == drive.dtype else x.to(wide(drive.dtype))
        for x in (cell.kernel_weights(), initial)
    )
    return newton_scan(drive, weights, initial, cell=cast("CellName", cell.kernel), **options)


def fused(system: System, algorithm: Algorithm, limits: Limits) -> tuple[Tensor, Course]:
    """States in the dtype of the drive, differentiable; how they were found.

    Args:
        system: of a built-in cell, whose drive may be in half precision.
        algorithm: see `newton_scan`.
        limits: its window and iterations are taken as they are. Its tolerance is where it is
            tighter than the scan's own, whose residual is absolute.
    """
    states, iterations, _ = scanned(
        system.cell,
        system.drive,
        system.initial,
        algorithm=algorithm,
        window=limits.window,
        tolerance=min(limits.tolerance, TOLERANCE[wide(system.drive.dtype)]),
        max_iterations=limits.max_iterations,
        cu_seqlens=system.layout.cu_seqlens,
    )
    most = int(iterations.max()) if iterations.numel() and system.layout.time else 0
    time = system.layout.time
    pieces = min(1, time) if most == 0 or limits.window is None else -(-time // limits.window)
    return states, Course(iterations=most, total_iterations=most, windows=pieces)
