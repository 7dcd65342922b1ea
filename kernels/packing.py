"""Packed sequences: they lie one after another, and cumulative lengths say where each begins.

Shapes are checked at the call; the numbers where an operator runs, because a compiler has none.
"""

from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

LENGTHS = "it holds where sequences begin, not their lengths: F.pad(lengths.cumsum(0), (1, 0))"

# Lengths on GPUs that were found right, with their version and number of tokens: the layers of a
# model share one tensor, and reading it back makes a GPU wait.
_checked = WeakIdKeyDictionary()


def check_cumulative(name: str, cu: Tensor, device: torch.device) -> None:
    """Dtype, shape and device of cumulative lengths.

    Raises:
        TypeError: no tensor of integers.
        ValueError: another shape than (sequences + 1,), or another device.
    """
    if not isinstance(cu, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(cu).__name__}; torch.as_tensor makes one"
        )
    if cu.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64, got {cu.dtype}; convert with .int()")
    if cu.ndim != 1 or cu.shape[0] < 2:
        raise ValueError(
            f"{name} must have shape (sequences + 1,) with at least one sequence, "
            f"got {tuple(cu.shape)}"
        )
    if cu.device != device:
        raise ValueError(f"{name} must be on {device}, got {cu.device}")


def count_sequences(cu: Tensor | None, x: Tensor) -> int:
    """Rows of x (batch, time, …), or the sequences that are packed in its only row.

    Raises:
        TypeError: no tensor of integers.
        ValueError: cumulative lengths that do not fit x, or more rows than one with them.
    """
    if cu is None:
        return x.shape[0]
    check_cumulative("cu_seqlens", cu, x.device)
    if x.shape[0] != 1:
        raise ValueError(
            "cu_seqlens: expected a batch of 1, because packed sequences lie one after another "
            f"along time in a batch of 1, got batch {x.shape[0]}; join them with "
            ".flatten(0, 1)[None], or leave cu_seqlens out"
        )
    return cu.shape[0] - 1


def check_numbers(name: str, cu: Tensor, tokens: int) -> None:
    """From 0, never falling, to the number of tokens; read back from a GPU once.

    Raises:
        ValueError: they are wrong. Never while a CUDA graph is captured, which cannot read.
    """
    if cu.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    known = (cu._version, tokens) if worth_remembering(cu) else None
    if known is None or _checked.get(cu) != known:
        check_bounds(name, cu.tolist(), tokens)
    if known is not None:
        _checked[cu] = known


def worth_remembering(cu: Tensor) -> bool:
    """Whether reading it again costs something, and its version tells when it has changed.

    The version of an inference tensor does not count, and that of a tensor on a CPU does not count
    writes through an array of NumPy's that shares its memory.
    """
    return cu.is_cuda and not cu.is_inference()


def check_bounds(name: str, bounds: list[int], tokens: int) -> None:
    """From 0, never falling, to the number of tokens.

    Raises:
        ValueError: they are not.
    """
    if bounds[0] != 0:
        raise ValueError(f"{name} must begin with 0, got {bounds[0]}; {LENGTHS}")
    falls = next((i for i, (a, b) in enumerate(pairwise(bounds)) if b < a), None)
    if falls is not None:
        raise ValueError(
            f"{name} must not decrease, got {bounds[falls]} followed by {bounds[falls + 1]}; "
            f"{LENGTHS}"
        )
    if bounds[-1] != tokens:
        raise ValueError(
            f"{name} must end at the number of tokens, {tokens}, got {bounds[-1]}; {LENGTHS}"
        )
