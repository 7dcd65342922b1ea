"""One step after another, all chains of a batch at once.

Calls of torch are what this costs, so each cell's step is written out in the fewest of them: views
of all times are made beforehand, gates that are alike are computed together, and a state is written
to where it stays.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ropewalk.kernels.newton_scan.cells import Cell

VIEWS = 1024
"""Steps whose views are made beforehand; very many at once cost more to make and to drop."""


def sequential(cell: Cell, x: Tensor, w: Tensor, initial: Tensor) -> Tensor:
    """States.

    Args:
        cell: the formulas.
        x: (batch, time, gates, channels).
        w: (rows, channels).
        initial: (batch, …), the states before.
    """
    states = x.new_empty(*x.shape[:2], *initial.shape[1:])
    if states.numel() == 0:
        return states
    for start in range(0, x.shape[1], VIEWS):
        part = slice(start, start + VIEWS)
        RUN[cell.name](x[:, part], w, initial, states[:, part])
        initial = states[:, min(part.stop, x.shape[1]) - 1]
    return states


def _tanh(x: Tensor, w: Tensor, h: Tensor, states: Tensor) -> None:
    for x_t, new in zip(x[:, :, 0].unbind(1), states.unbind(1), strict=True):
        h = torch.addcmul(x_t, w[0], h, out=new).tanh_()


def _gru(x: Tensor, w: Tensor, h: Tensor, states: Tensor) -> None:
    recurrent, bias = w[:3], w[3]
    # x_n is added only after r was applied, so in the sum of all three stands b_n in its place.
    sums = torch.cat([x[:, :, :2], bias.expand(*x.shape[:2], 1, -1)], dim=2)
    gates = torch.empty_like(sums[:, 0])
    r, z, inner = gates.unbind(1)
    sigmoids = gates[:, :2]
    rows, before = states.unsqueeze(2).unbind(1), h.unsqueeze(1)
    times = zip(sums.unbind(1), x[:, :, 2].unbind(1), states.unbind(1), rows, strict=True)
    for sum_t, x_n, new, row in times:
        torch.addcmul(sum_t, recurrent, before, out=gates)
        sigmoids.sigmoid_()
        torch.lerp(torch.addcmul(x_n, r, inner, out=inner).tanh_(), h, z, out=new)
        h, before = new, row


def _lstm(x: Tensor, w: Tensor, state: Tensor, states: Tensor) -> None:
    recurrent, of_f, of_o = w[:3], w[3], w[4]
    c, h = state.unbind(1)
    gates = torch.empty_like(x[:, 0])
    f, z, o = gates.unbind(1)
    rows, before = states[:, :, 1:].unbind(1), h.unsqueeze(1)
    times = zip(
        x.unbind(1), states[:, :, 0].unbind(1), states[:, :, 1].unbind(1), rows, strict=True
    )
    for x_t, new_c, new_h, row in times:
        torch.addcmul(x_t, recurrent, before, out=gates)
        f.addcmul_(of_f, c).sigmoid_()
        torch.lerp(z.tanh_(), c, f, out=new_c)
        o.addcmul_(of_o, new_c).sigmoid_()
        torch.tanh(new_c, out=new_h).mul_(o)
        c, before = new_c, row


RUN: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], None]] = {
    "tanh": _tanh,
    "gru": _gru,
    "lstm": _lstm,
}
