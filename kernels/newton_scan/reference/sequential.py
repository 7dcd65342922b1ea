"""One step after another, all chains of a batch at once."""

from torch import Tensor

from ropewalk.kernels.newton_scan.cells import Cell


def sequential(cell: Cell, x: Tensor, w: Tensor, initial: Tensor) -> Tensor:
    """States.

    Args:
        cell: the formulas.
        x: (batch, time, gates, channels).
        w: (rows, channels).
        initial: (batch, …), the states before.
    """
    states = x.new_empty(*x.shape[:2], *initial.shape[1:])
    h = initial
    for t in range(x.shape[1]):
        h = cell.step(x[:, t], h, w)
        states[:, t] = h
    return states
