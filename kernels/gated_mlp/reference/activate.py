"""Forward and backward of the activation, in tiles of rows.

    forward    a = act(g) · u
    backward   ∂u = ∂a · act(g),   ∂g = ∂a · u · act'(g),   and a again

Each is a few passes of torch's own kernels. On a CPU they go over some rows at a time, so that all
but the first read what is still in the cache, and half precision is widened there alone. On a GPU
there is one tile, of all rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.gated_mlp.activation import activate, pull_back
from ropewalk.kernels.gated_mlp.problem import Form

TILE = 2**16
"""Elements of a tile's result: with what it is made of, a few hundred KiB, for each thread."""


def forward(projected: Tensor, form: Form) -> Tensor:
    """Activated features, (rows, hidden); see `ropewalk.kernels.gated_mlp.problem`."""
    hidden = form.hidden(projected.shape[1])
    activated = projected.new_empty((projected.shape[0], hidden))
    dtype = wide(projected.dtype)
    for tile in _tiles(activated):
        gate, up = _halves(projected[tile].to(dtype), form)
        narrow = activated.dtype != dtype
        value = gate.new_empty(gate.shape) if narrow else activated[tile]
        activate(gate, form.activation, value)
        if up is not None:
            value.mul_(up)
        if narrow:
            activated[tile] = value
    return activated


def backward(
    projected: Tensor, activated_grad: Tensor, form: Form, want_activated: bool
) -> tuple[Tensor, Tensor | None]:
    """The projection's gradient, and if wanted what the forward gave."""
    dtype = wide(projected.dtype)
    projected_grad = projected.new_empty(projected.shape)
    activated = projected.new_empty(activated_grad.shape) if want_activated else None
    for tile in _tiles(activated_grad):
        grad = activated_grad[tile].to(dtype)
        gate, up = _halves(projected[tile].to(dtype), form)
        gate_grad, up_grad = _halves(projected_grad[tile], form)
        value = activate(gate, form.activation, grad.new_empty(grad.shape))
        if up_grad is not None:
            torch.mul(grad, value, out=up_grad)
        narrow = gate_grad.dtype != dtype
        inner = grad.new_empty(grad.shape) if narrow else gate_grad
        if up is not None:
            grad = torch.mul(grad, up, out=inner)
        pull_back(grad, gate, value, form.activation, inner)
        if narrow:
            gate_grad.copy_(inner)
        if activated is not None:
            activated[tile] = value if up is None else value.mul_(up)
    return projected_grad, activated


def _tiles(result: Tensor) -> Iterator[slice]:
    """Slices of rows that together are all of them."""
    rows, features = result.shape
    step = rows
    if result.device.type == "cpu":
        step = max(1, TILE * torch.get_num_threads() // max(features, 1))
    for start in range(0, rows, max(step, 1)):
        yield slice(start, min(start + step, rows))


def _halves(rows: Tensor, form: Form) -> tuple[Tensor, Tensor | None]:
    """Gate and up; without a gate all of the rows and none."""
    if not form.gated:
        return rows, None
    gate, up = rows.chunk(2, dim=1)
    return gate, up
