"""What is refused, and in which words: expected, got, and how to mend it."""

import math
from typing import get_args

import torch
from torch import Tensor

from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.newton_scan.cells import CELLS
from ropewalk.kernels.newton_scan.problem import Algorithm
from ropewalk.kernels.packing import count_sequences

ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_cell(cell: str) -> None:
    """A name that exists."""
    if not isinstance(cell, str) or cell not in CELLS:
        raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")


def check_tensors(
    inputs: Tensor,
    weights: Tensor,
    initial_state: Tensor | None,
    cell: str,
    cu_seqlens: Tensor | None,
) -> None:
    """Kinds, dtypes, devices and sizes."""
    given = {"inputs": inputs, "weights": weights}
    if initial_state is not None:
        given["initial_state"] = initial_state
    for name, tensor in given.items():
        _check_kind(name, tensor, inputs)
    formulas = CELLS[cell]
    gates, rows = len(formulas.gates), len(formulas.rows)
    if inputs.ndim != 4 or inputs.shape[2] != gates:
        raise ValueError(
            f"inputs: expected (batch, time, {gates}, channels) with the gates "
            f"{', '.join(formulas.gates)} of {cell!r}, got {tuple(inputs.shape)}; a projection "
            f"(batch, time, {gates}·channels) becomes it by .unflatten(-1, ({gates}, -1))"
        )
    channels = inputs.shape[-1]
    if weights.shape != (rows, channels):
        raise ValueError(
            f"weights: expected ({rows}, {channels}), the rows {', '.join(formulas.rows)} of "
            f"{cell!r}, got {tuple(weights.shape)}"
        )
    sequences = count_sequences(cu_seqlens, inputs)
    expected = (sequences, *formulas.state_shape(channels))
    if initial_state is not None and initial_state.shape != expected:
        parts = " with [c, h]" if formulas.parts == 2 else ""
        raise ValueError(
            f"initial_state: expected {expected}{parts}, got {tuple(initial_state.shape)}"
        )


def _check_kind(name: str, tensor: Tensor, inputs: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"{name}: expected a floating-point dtype, got {tensor.dtype}; use "
            f"{'.real, or linear_scan' if tensor.is_complex() else '.float()'}"
        )
    if tensor.dtype not in (inputs.dtype, wide(inputs.dtype)):
        also = "" if wide(inputs.dtype) == inputs.dtype else f" or {wide(inputs.dtype)}"
        raise ValueError(
            f"{name}: expected {inputs.dtype}{also} with such inputs, got {tensor.dtype}; use "
            ".to(inputs)"
        )
    if tensor.device != inputs.device:
        raise ValueError(
            f"{name}: expected it on {inputs.device} as inputs are, got {tensor.device}; use "
            ".to(inputs.device)"
        )


def check_options(
    algorithm: str, window: int | None, tolerance: float | None, max_iterations: int | None
) -> None:
    """Names that exist, and numbers that make sense."""
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: expected one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
    for name, value in (("window", window), ("max_iterations", max_iterations)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer ≥ 1 or None, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected an integer ≥ 1 or None, got {value}")
    if tolerance is None:
        return
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(f"tolerance: expected a number > 0 or None, got {tolerance!r}")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance: expected a finite number > 0 or None, got {tolerance!r}")
