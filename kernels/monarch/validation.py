"""What is refused, and in which words: expected, got, and how to mend it."""

import torch
from torch import Tensor

from ropewalk.kernels.monarch.activation import ACTIVATIONS

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = (torch.complex64, torch.complex128)


def check_tensors(x: Tensor, right: Tensor, left: Tensor, bias: Tensor | None) -> None:
    """Kinds, dtypes, devices, ranks and sizes."""
    check_alike(x=x, right=right, left=left, **({} if bias is None else {"bias": bias}))
    check_factors(right, left)
    features = right.shape[0] * right.shape[2]
    if x.ndim < 1 or x.shape[-1] != features:
        raise ValueError(
            f"x: expected (..., {features}), which is blocks × features of right "
            f"{tuple(right.shape)}, got {tuple(x.shape)}; fill up with zeros "
            "(torch.nn.functional.pad) where the last block is shorter"
        )
    outputs = left.shape[0] * left.shape[1]
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(
            f"bias: expected ({outputs},), which is blocks × features of left "
            f"{tuple(left.shape)}, got {tuple(bias.shape)}"
        )


def check_alike(**given: Tensor) -> None:
    """Tensors to calculate with, all in the dtype and on the device of the first."""
    first, like = next(iter(given.items()))
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in REAL + COMPLEX:
            raise ValueError(
                f"{name}: expected a floating-point or complex dtype, got {tensor.dtype}; use "
                ".float()"
            )
        if tensor.dtype != like.dtype or tensor.device != like.device:
            raise ValueError(
                f"{name}: expected {like.dtype} on {like.device} as {first} is, got "
                f"{tensor.dtype} on {tensor.device}; use .to({first})"
            )


def check_factors(right: Tensor, left: Tensor) -> None:
    """Three dimensions each, and sizes that belong together."""
    for name, factor, form in (
        ("right", right, "(input_blocks, output_blocks·rank, input_size)"),
        ("left", left, "(output_blocks, output_size, input_blocks·rank)"),
    ):
        if factor.ndim != 3 or 0 in factor.shape:
            raise ValueError(f"{name}: expected {form}, none of them 0, got {tuple(factor.shape)}")
    k, rows, _ = right.shape
    blocks, _, columns = left.shape
    if rows * k != columns * blocks or rows % blocks or columns % k:
        raise ValueError(
            f"right and left: expected (k, l·r, p) and (l, s, k·r) with one rank r, got "
            f"{tuple(right.shape)} and {tuple(left.shape)}, which is k = {k}, l = {blocks}, "
            f"{rows} = l·{rows / blocks:g} rows of right and {columns} = k·{columns / k:g} "
            "columns of left"
        )


def check_options(activation: str | None, block_major_output: bool, x: Tensor) -> None:
    """An activation that exists and that the numbers have."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"activation: expected None or one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        )
    if activation is not None and x.is_complex():
        raise ValueError(
            f"activation: expected None for complex tensors, got {activation!r}; apply it to the "
            "result's parts"
        )
    if not isinstance(block_major_output, bool):
        raise TypeError(
            f"block_major_output: expected True or False, got {type(block_major_output).__name__}"
        )
