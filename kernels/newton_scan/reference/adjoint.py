"""The gradient of a solution, whatever found it."""

import torch
from torch import Tensor

from ropewalk.kernels.linear_scan.problem import Structure
from ropewalk.kernels.linear_scan.reference.adjoint import adjoint as linear_adjoint
from ropewalk.kernels.newton_scan.cells import Cell


def adjoint(
    cell: Cell, x: Tensor, w: Tensor, initial: Tensor, states: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, w and the initial states; all (batch, time, …)."""
    structure: Structure = "diagonal" if cell.parts == 1 else "block2"
    previous = torch.cat([initial.unsqueeze(1), states[:, :-1]], dim=1)
    _, jacobian = cell.linearise(x, previous, w)
    _, g, of_initial = linear_adjoint(
        structure, jacobian, states, initial, grad, reverse=False, needs_a=False
    )
    of_x, of_w = cell.pullback(x, previous, w, g)
    return of_x, of_w, of_initial
