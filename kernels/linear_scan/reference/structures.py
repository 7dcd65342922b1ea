"""One step of a recurrence, and two steps in one, for each structure of the coefficients.

Time may be anywhere in front: coefficients are (…, channels), (…, 2, 2, channels) or (…, channels,
channels), states (…, channels) or (…, 2, channels).
"""

import torch
from torch import Tensor

from ropewalk.kernels.linear_scan.problem import Structure


def advance(structure: Structure, a: Tensor, x: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Writes a x + b to `out`, which shares no memory with the others."""
    if structure == "diagonal":
        return torch.addcmul(b, a, x, out=out)
    if structure == "dense":
        return torch.add(torch.einsum("...ij,...j->...i", a, x), b, out=out)
    for i in range(2):
        row = out[..., i, :]
        torch.addcmul(b[..., i, :], a[..., i, 0, :], x[..., 0, :], out=row)
        row.addcmul_(a[..., i, 1, :], x[..., 1, :])
    return out


def add_product(structure: Structure, states: Tensor, a: Tensor, x: Tensor) -> Tensor:
    """Adds a x to states, in place."""
    if structure == "diagonal":
        return states.addcmul_(a, x)
    if structure == "dense":
        return states.add_(torch.einsum("...ij,...j->...i", a, x))
    for i in range(2):
        for j in range(2):
            states[..., i, :].addcmul_(a[..., i, j, :], x[..., j, :])
    return states


def compose(structure: Structure, later: Tensor, earlier: Tensor, out: Tensor) -> Tensor:
    """Writes the coefficients of two steps in one to `out`, which shares no memory with them."""
    if structure == "diagonal":
        return torch.mul(later, earlier, out=out)
    if structure == "dense":
        return out.copy_(later @ earlier)
    for i in range(2):
        for j in range(2):
            entry = out[..., i, j, :]
            torch.mul(later[..., i, 0, :], earlier[..., 0, j, :], out=entry)
            entry.addcmul_(later[..., i, 1, :], earlier[..., 1, j, :])
    return out


def adjoint_of(structure: Structure, a: Tensor) -> Tensor:
    """The conjugate transpose.

    Conjugates are made and not only marked (conj): inside a custom operator that a compiler calls,
    torch reads what is marked as if it were not.
    """
    if structure == "diagonal":
        return a.conj_physical()
    return (a.transpose(-2, -1) if structure == "dense" else a.transpose(-3, -2)).conj_physical()


def outer(structure: Structure, g: Tensor, x: Tensor) -> Tensor:
    """The gradient of the coefficients of a step, g xᴴ in their structure."""
    x = x.conj_physical()
    if structure == "diagonal":
        return g * x
    if structure == "dense":
        return g.unsqueeze(-1) * x.unsqueeze(-2)
    return g.unsqueeze(-2) * x.unsqueeze(-3)
