"""Launches the kernels on rows at any distance: strides, grids and constants."""

import torch
from torch import Tensor

from ropewalk.kernels.chips import too_old
from ropewalk.kernels.gated_mlp.problem import Form
from ropewalk.kernels.gated_mlp.triton.activate import activate_backward_kernel, activate_kernel
from ropewalk.kernels.gated_mlp.triton.configurations import configuration
from ropewalk.kernels.launching import run

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unsupported(x: Tensor) -> str | None:
    """Why the kernels cannot run on tensors like this one, or None."""
    if x.dtype not in DTYPES:
        return f"its kernels take float16, bfloat16 and float32, got {x.dtype}"
    return too_old(x)


def forward(projected: Tensor, form: Form) -> Tensor:
    """Activated features, (rows, hidden); see `ropewalk.kernels.gated_mlp.problem`."""
    rows, hidden = projected.shape[0], form.hidden(projected.shape[1])
    activated = projected.new_empty((rows, hidden))
    if rows == 0:
        return activated
    sizes = configuration(rows, hidden, "forward")
    run(
        activate_kernel,
        (sizes.programs(rows, hidden),),
        projected,
        projected=projected,
        activated=activated,
        rows=rows,
        hidden=hidden,
        projected_stride=projected.stride(0),
        ACTIVATION=form.activation,
        GATED=form.gated,
        ROWS=sizes.rows,
        COLUMNS=sizes.columns,
        **sizes.launch(),
    )
    return activated


def backward(
    projected: Tensor, activated_grad: Tensor, form: Form, want_activated: bool
) -> tuple[Tensor, Tensor | None]:
    """The projection's gradient, and if wanted what the forward gave."""
    rows, hidden = activated_grad.shape
    projected_grad = projected.new_empty(projected.shape)
    activated = projected.new_empty((rows, hidden)) if want_activated else None
    if rows == 0:
        return projected_grad, activated
    sizes = configuration(rows, hidden, "backward")
    run(
        activate_backward_kernel,
        (sizes.programs(rows, hidden),),
        projected,
        projected=projected,
        activated_grad=activated_grad,
        projected_grad=projected_grad,
        # A pointer that is not followed where it is not wanted.
        activated=projected_grad if activated is None else activated,
        rows=rows,
        hidden=hidden,
        projected_stride=projected.stride(0),
        activated_grad_stride=activated_grad.stride(0),
        ACTIVATION=form.activation,
        GATED=form.gated,
        AGAIN=want_activated,
        ROWS=sizes.rows,
        COLUMNS=sizes.columns,
        **sizes.launch(),
    )
    return projected_grad, activated
