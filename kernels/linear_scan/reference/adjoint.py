"""The backward: the same recurrence against the direction of time, then products with states."""

import torch
from torch import Tensor

from ropewalk.kernels.linear_scan.problem import Structure
from ropewalk.kernels.linear_scan.reference.chunks import scan
from ropewalk.kernels.linear_scan.reference.structures import adjoint_of, advance, outer


def adjoint(
    structure: Structure,
    a: Tensor,
    states: Tensor,
    initial: Tensor,
    grad: Tensor,
    *,
    reverse: bool,
    needs_a: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of a, b and the initial state.

    Args:
        structure: of the coefficients.
        a: (batch, time, …).
        states: (batch, time, …), in the dtype of a.
        initial: (batch, …).
        grad: of the states.
        reverse: the direction of the forward.
        needs_a: whether the first gradient is wanted.
    """
    turned = adjoint_of(structure, a)
    if grad.shape[1] == 0:
        return (torch.empty_like(a) if needs_a else None), grad.clone(), torch.zeros_like(initial)
    # g of the last step is its gradient; each other takes the coefficients of the step after it.
    if reverse:
        end, inner, after, before = slice(0, 1), slice(1, None), slice(0, -1), -1
    else:
        end, inner, after, before = slice(-1, None), slice(0, -1), slice(1, None), 0
    last = grad[:, end]
    rest = scan(structure, turned[:, after], grad[:, inner], last[:, 0], reverse=not reverse)
    g = torch.cat([last, rest] if reverse else [rest, last], dim=1)
    none = torch.zeros_like(initial)
    of_initial = advance(structure, turned[:, before], g[:, before], none, torch.empty_like(none))
    if not needs_a:
        return None, g, of_initial
    edge = initial.unsqueeze(1)
    previous = (
        torch.cat([states[:, 1:], edge], dim=1)
        if reverse
        else torch.cat([edge, states[:, :-1]], dim=1)
    )
    return outer(structure, g, previous), g, of_initial
