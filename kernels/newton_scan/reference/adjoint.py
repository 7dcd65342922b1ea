"""The gradient of a solution, whatever found it."""

import torch
from torch import Tensor

from ropewalk.kernels.linear_scan.problem import Structure
from ropewalk.kernels.linear_scan.reference.adjoint import adjoint as linear_adjoint
from ropewalk.kernels.newton_scan.cells import Cell

LEAST = 32
"""Steps of a block."""
BLOCK = 2**15
"""Numbers of a gate that are computed at once, so that the next call of torch finds them cached."""


def adjoint(
    cell: Cell, x: Tensor, w: Tensor, initial: Tensor, states: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, w and the initial states; all (batch, time, …).

    By blocks of time, from the last to the first; what the adjoint hands to the block before is the
    gradient of the state that this one starts from.
    """
    time = x.shape[1]
    size = max(BLOCK // max(x.shape[0] * x.shape[-1], 1), LEAST)
    of_x, of_w, carried = torch.empty_like(x), torch.zeros_like(w), torch.zeros_like(initial)
    for end in range(time, 0, -size):
        block = slice(max(end - size, 0), end)
        before = initial if block.start == 0 else states[:, block.start - 1]
        own_grad = grad[:, block].clone()
        own_grad[:, -1] += carried
        of_x[:, block], of_own_w, carried = _block(
            cell, x[:, block], w, before, states[:, block], own_grad
        )
        of_w += of_own_w
    return of_x, of_w, carried


def _block(
    cell: Cell, x: Tensor, w: Tensor, initial: Tensor, states: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    structure: Structure = "diagonal" if cell.parts == 1 else "block2"
    previous = torch.cat([initial.unsqueeze(1), states[:, :-1]], dim=1)
    _, jacobian = cell.linearise(x, previous, w)
    _, g, of_initial = linear_adjoint(
        structure, jacobian, states, initial, grad, reverse=False, needs_a=False
    )
    of_x, of_w = cell.pullback(x, previous, w, g)
    return of_x, of_w, of_initial
