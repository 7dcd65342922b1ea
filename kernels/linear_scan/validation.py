"""What is refused, and in which words: expected, got, and how to mend it."""

import torch
from torch import Tensor

from ropewalk.kernels.packing import count_sequences

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
FORMS = (
    "a (batch, time, channels) and b (batch, time, channels) [diagonal], "
    "a (batch, time, 2, 2, channels) and b (batch, time, 2, channels) [blocks], or "
    "a (batch, time, channels, channels) and b (batch, time, channels) [dense], where "
    "batch and time of a may be 1"
)


def check_tensors(
    a: Tensor, b: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    """Kinds, dtypes, devices and sizes."""
    given = {"a": a, "b": b}
    if initial_state is not None:
        given["initial_state"] = initial_state
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name}: expected a floating-point or complex dtype, got {tensor.dtype}; use "
                f"{'.to(torch.complex64)' if tensor.is_complex() else '.float()'}"
            )
    for name, tensor in given.items():
        if tensor.is_complex() and not b.is_complex():
            raise ValueError(
                f"{name}: expected {b.dtype} as b is, got {tensor.dtype}; make them all complex: "
                f"b.to({tensor.dtype})"
            )
        if tensor.dtype != b.dtype or tensor.device != b.device:
            raise ValueError(
                f"{name}: expected {b.dtype} on {b.device} as b is, got {tensor.dtype} on "
                f"{tensor.device}; use .to(b)"
            )
    _check_sizes(a, b)
    sequences = count_sequences(cu_seqlens, b)
    if initial_state is not None and initial_state.shape != (sequences, *b.shape[2:]):
        whose = "one of each packed sequence" if cu_seqlens is not None else "one of each row of b"
        raise ValueError(
            f"initial_state: expected {(sequences, *b.shape[2:])}, {whose}, got "
            f"{tuple(initial_state.shape)}"
        )


def _check_sizes(a: Tensor, b: Tensor) -> None:
    """Dimensions that make one of the three structures; a may be 1 along batch and time."""
    ranks = (a.ndim, b.ndim)
    if ranks not in ((3, 3), (5, 4), (4, 3)):
        raise ValueError(f"expected {FORMS}, got a {tuple(a.shape)} and b {tuple(b.shape)}")
    inner = {3: b.shape[2:], 5: (2, 2, b.shape[-1]), 4: (b.shape[-1], b.shape[-1])}[a.ndim]
    if a.shape[2:] != inner or (a.ndim == 5 and b.shape[2] != 2):
        raise ValueError(f"expected {FORMS}, got a {tuple(a.shape)} and b {tuple(b.shape)}")
    for size, of_a, of_b in zip(("batch", "time"), a.shape[:2], b.shape[:2], strict=True):
        if of_a not in (1, of_b):
            raise ValueError(
                f"a: expected {size} {of_b} as b has, or 1, got {of_a}; a {tuple(a.shape)}, b "
                f"{tuple(b.shape)}"
            )


def check_options(reverse: bool) -> None:
    """A switch that is one."""
    if not isinstance(reverse, bool):
        raise TypeError(f"reverse: expected True or False, got {type(reverse).__name__}")
