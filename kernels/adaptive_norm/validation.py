"""What is refused, and in which words: expected, got, and how to mend it."""

import math

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.problem import NORMS
from ropewalk.kernels.packing import count_sequences

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensor(name: str, given: object) -> None:
    """A tensor."""
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(given).__name__}")


def check_stream(x: Tensor, branch: Tensor | None) -> None:
    """Dtypes, shapes and devices of what has a row for each token."""
    for name, tensor in (("x", x), ("branch", branch)):
        if tensor is None:
            continue
        if tensor.dtype not in FLOATS:
            raise TypeError(
                f"{name}: expected float32, bfloat16, float16 or float64, got {tensor.dtype}; "
                "cast it"
            )
        if tensor.ndim != 3 or tensor.shape[2] == 0:
            raise ValueError(
                f"{name}: expected (batch, tokens, dim) with a dim of at least 1, got "
                f"{tuple(tensor.shape)}; .flatten(1, -2) makes it from a grid of tokens"
            )
    if branch is None:
        return
    if branch.shape != x.shape:
        raise ValueError(
            f"branch: expected the shape of x, {tuple(x.shape)}, got {tuple(branch.shape)}"
        )
    if branch.dtype != x.dtype or branch.device != x.device:
        raise ValueError(
            f"branch: expected {x.dtype} on {x.device} as x is, got {branch.dtype} on "
            f"{branch.device}; use .to(x)"
        )


def check_samples(x: Tensor, cu_seqlens: Tensor | None, **given: Tensor | None) -> None:
    """Gates, shifts and scales, by name: one row for each sample, or one for all."""
    samples = count_sequences(cu_seqlens, x)
    for name, tensor in given.items():
        if tensor is None:
            continue
        _check_alike(name, tensor, x)
        dim = x.shape[2]
        if tensor.ndim != 2 or tensor.shape[1] != dim or tensor.shape[0] not in (1, samples):
            raise ValueError(
                f"{name}: expected ({samples}, {dim}), one row for each sample, or (1, {dim}), got "
                f"{tuple(tensor.shape)}"
            )


def check_affine(x: Tensor, **given: Tensor | None) -> None:
    """The norm's own weight and bias, by name."""
    for name, tensor in given.items():
        if tensor is None:
            continue
        _check_alike(name, tensor, x)
        if tensor.shape != (x.shape[2],):
            raise ValueError(
                f"{name}: expected ({x.shape[2]},), one number for each dimension, got "
                f"{tuple(tensor.shape)}"
            )


def _check_alike(name: str, tensor: Tensor, x: Tensor) -> None:
    check_tensor(name, tensor)
    if tensor.dtype not in (x.dtype, torch.float32):
        raise ValueError(
            f"{name}: expected {x.dtype} as x is, or torch.float32, got {tensor.dtype}; use "
            ".to(x.dtype)"
        )
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected it on {x.device}, got {tensor.device}; move it")


def check_norm(norm: str, eps: float) -> None:
    """A norm that exists, and what keeps it from dividing by zero."""
    if norm not in NORMS:
        raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}")
    if isinstance(eps, bool) or not isinstance(eps, int | float):
        raise TypeError(f"eps: expected a number, got {type(eps).__name__}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps: expected a finite number of at least 0, got {eps}")
