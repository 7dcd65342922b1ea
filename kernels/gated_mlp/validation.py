"""What is refused, and in which words: expected, got, and how to mend it."""

import torch
from torch import Tensor

from ropewalk.kernels.gated_mlp.activation import ACTIVATIONS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_projected(projected: Tensor) -> None:
    """A tensor to calculate with, of two halves."""
    if not isinstance(projected, Tensor):
        raise TypeError(f"projected: expected a tensor, got {type(projected).__name__}")
    _check_dtype("projected", projected)
    if projected.ndim < 1 or projected.shape[-1] < 2 or projected.shape[-1] % 2:
        raise ValueError(
            "projected: expected (..., 2·hidden), gate and up side by side, got "
            f"{tuple(projected.shape)}"
        )


def check_kinds(
    x: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    bias_in: Tensor | None,
    bias_out: Tensor | None,
) -> None:
    """Tensors, and biases that may be left out."""
    required = {"x": x, "weight_in": weight_in, "weight_out": weight_out}
    for name, tensor in (required | {"bias_in": bias_in, "bias_out": bias_out}).items():
        if not isinstance(tensor, Tensor) and (tensor is not None or name in required):
            wanted = "a tensor" if name in required else "a tensor or None"
            raise TypeError(f"{name}: expected {wanted}, got {type(tensor).__name__}")


def check_feed_forward(
    x: Tensor,
    weight_in: Tensor,
    weight_out: Tensor,
    bias_in: Tensor | None,
    bias_out: Tensor | None,
    gated: bool,
) -> None:
    """Dtypes, devices and sizes that belong together."""
    if not isinstance(gated, bool):
        raise TypeError(f"gated: expected True or False, got {type(gated).__name__}")
    for name, tensor in (
        ("x", x),
        ("weight_in", weight_in),
        ("weight_out", weight_out),
        ("bias_in", bias_in),
        ("bias_out", bias_out),
    ):
        if tensor is None:
            continue
        _check_dtype(name, tensor)
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(
                f"{name}: expected {x.dtype} on {x.device} as x is, got {tensor.dtype} on "
                f"{tensor.device}; use .to(x)"
            )
    for name, weight, form in (
        ("weight_in", weight_in, "(2·hidden, dim)" if gated else "(hidden, dim)"),
        ("weight_out", weight_out, "(out, hidden)"),
    ):
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(f"{name}: expected {form}, none of them 0, got {tuple(weight.shape)}")
    (width, dim), (out, hidden) = weight_in.shape, weight_out.shape
    if width != (2 * hidden if gated else hidden):
        expected = f"(2·{hidden}, dim), gate above up" if gated else f"({hidden}, dim)"
        raise ValueError(
            f"weight_in: expected {expected}, for weight_out {tuple(weight_out.shape)}, got "
            f"{tuple(weight_in.shape)}; pass gated={not gated} if that is meant"
        )
    if x.ndim < 1 or x.shape[-1] != dim:
        raise ValueError(
            f"x: expected (..., {dim}), as weight_in {tuple(weight_in.shape)} takes it, got "
            f"{tuple(x.shape)}"
        )
    for name, bias, features in (("bias_in", bias_in, width), ("bias_out", bias_out, out)):
        if bias is not None and tuple(bias.shape) != (features,):
            raise ValueError(f"{name}: expected ({features},), got {tuple(bias.shape)}")


def check_activation(activation: str) -> None:
    """One of the names."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )


def _check_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}; use "
            ".float()"
        )
