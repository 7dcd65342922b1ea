"""Forward and backward of the activation, in tiles of rows.

    forward    a = act(g) · u
    backward   ∂u = ∂a · act(g),   ∂g = ∂a · u · act'(g),   and a again

Each is a few passes of torch's own kernels, in the dtype of the tensors. On a CPU they go over some
rows at a time, so that all but the first read what is still in the cache: the activation that is
computed again costs less than it would to fetch. On a GPU there is one tile, of all rows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.gated_mlp.activation import (
    activate,
    gelu_tanh,
    pull_back,
    value_and_slope,
)
from ropewalk.kernels.gated_mlp.problem import Form

TILE = 2**16
"""Elements of a tile's result for each thread: 256 KiB in float32, of which a few are at work."""


def forward(projected: Tensor, form: Form) -> Tensor:
    """Activated features, (rows, hidden); see `ropewalk.kernels.gated_mlp.problem`."""
    activated = projected.new_empty((projected.shape[0], form.hidden(projected.shape[1])))
    scratch = _scratch(activated, form) if form.activation == "gelu_tanh" else None
    for value, gate, *up in _tiles(form, activated, *_parts(projected, form)):
        if scratch is None:
            # Rows that lie together take torch's kernels half the time, and the copy is nothing.
            activate(value.copy_(gate) if up else gate, form.activation, value)
            if up:
                value.mul_(up[0])
        else:
            wide_value = gelu_tanh(gate, scratch[:, : len(gate)])
            if up:
                torch.mul(wide_value, up[0], out=value)
            else:
                value.copy_(wide_value)
    return activated


def backward(
    projected: Tensor, activated_grad: Tensor, form: Form, want_activated: bool
) -> tuple[Tensor, Tensor | None]:
    """The projection's gradient, and if wanted what the forward gave."""
    projected_grad = projected.new_empty(projected.shape)
    activated = projected.new_empty(activated_grad.shape) if want_activated else None
    given = (activated_grad, *_parts(projected, form), *_parts(projected_grad, form))
    step = _backward_of_gated if form.gated else _backward_of_plain
    narrow = projected.dtype != wide(projected.dtype)
    one_exponential = form.activation == "gelu_tanh" or (form.activation == "silu" and not narrow)
    scratch = _scratch(activated_grad, form) if one_exponential else None
    for tensors in _tiles(form, *given, *([] if activated is None else [activated])):
        step(form.activation, scratch, *tensors)
    return projected_grad, activated


def _backward_of_gated(
    activation: str,
    scratch: Tensor | None,
    grad: Tensor,
    gate: Tensor,
    up: Tensor,
    gate_grad: Tensor,
    up_grad: Tensor,
    again: Tensor | None = None,
) -> None:
    if scratch is None:
        value = grad.new_empty(grad.shape) if again is None else again
        activate(gate, activation, value)
        torch.mul(grad, value, out=up_grad)
        torch.mul(grad, up, out=gate_grad)
        pull_back(gate_grad, gate, value, activation, gate_grad)
    else:
        value, slope = value_and_slope(gate, activation, scratch[:, : len(gate)])
        torch.mul(grad, value, out=up_grad)
        torch.mul(slope.mul_(grad), up, out=gate_grad)
    if again is not None:
        torch.mul(value, up, out=again)


def _backward_of_plain(
    activation: str,
    scratch: Tensor | None,
    grad: Tensor,
    z: Tensor,
    z_grad: Tensor,
    again: Tensor | None = None,
) -> None:
    if scratch is None:
        value = grad.new_empty(grad.shape) if again is None else again
        if again is not None or activation == "sigmoid":
            activate(z, activation, value)
        pull_back(grad, z, value, activation, z_grad)
    else:
        value, slope = value_and_slope(z, activation, scratch[:, : len(z)])
        torch.mul(grad, slope, out=z_grad)
        if again is not None:
            again.copy_(value)


def _parts(x: Tensor, form: Form) -> tuple[Tensor, ...]:
    """Gate and up, or all of it."""
    return x.chunk(2, dim=1) if form.gated else (x,)


def _step(result: Tensor, form: Form) -> int:
    """Rows of a tile; all of them where there is but one pass."""
    rows, features = result.shape
    if result.device.type != "cpu" or not (form.gated or form.activation in ("silu", "gelu_tanh")):
        return max(rows, 1)
    return max(1, min(rows, TILE * torch.get_num_threads() // features))


def _tiles(form: Form, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each, some at a time; the first is one of the activated features."""
    step = _step(tensors[0], form)
    return zip(*(x.split(step) for x in tensors), strict=True)


def _scratch(result: Tensor, form: Form) -> Tensor:
    """Memory for the steps of a tile that are not torch's own; in float32 at least."""
    shape = (3, _step(result, form), result.shape[1])
    return result.new_empty(shape, dtype=wide(result.dtype))
