"""Checks of what a `TiedEmbedding` is made of and of what it is given, before any work is done."""

import math

import torch
from torch import Tensor

from ropewalk.blocks.checks import require_number
from ropewalk.blocks.heads.sharding import is_sharded
from ropewalk.kernels.autocast import AUTOCAST_DEVICES


def require_finite(owner: str, **fields: float) -> None:
    """Raises unless every field is a finite number.

    Raises:
        TypeError: a field is not a number.
        ValueError: a field is infinite or not a number (NaN).
    """
    require_number(owner, "a finite number", **fields)
    for field, value in fields.items():
        if not math.isfinite(value):
            raise ValueError(f"{owner}.{field}: expected a finite number, got {value!r}")


def require_floating(owner: str, dtype: torch.dtype | None) -> None:
    """Raises unless parameters may have this dtype; None is torch's default.

    Raises:
        ValueError: a dtype that is not a floating-point one.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"{owner}.dtype: expected a floating-point dtype, got {dtype}")


def padding_row(padding_idx: int | None, num_embeddings: int) -> int | None:
    """The row of `padding_idx`, which may count from the end.

    Raises:
        TypeError: not an integer.
        ValueError: outside of the table.
    """
    if padding_idx is None:
        return None
    if isinstance(padding_idx, bool) or not isinstance(padding_idx, int):
        raise TypeError(f"padding_idx: expected an integer or None, got {padding_idx!r}")
    if not -num_embeddings <= padding_idx < num_embeddings:
        raise ValueError(
            f"padding_idx: expected a row of the table, below num_embeddings = {num_embeddings}, "
            f"got {padding_idx}"
        )
    return padding_idx % num_embeddings


def check_ids(ids: Tensor) -> None:
    """Raises unless these are tokens.

    Raises:
        TypeError: not a tensor.
        ValueError: of another dtype.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids: expected a tensor, got {type(ids).__name__}; use torch.tensor(…)")
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids: expected int64 or int32 tokens, got {ids.dtype}; use .long()")


def check_hidden(hidden: Tensor, matrix: Tensor) -> None:
    """Raises unless `hidden` can be multiplied with the head's `matrix`.

    The device is asked because torch does not: a product of a tensor on the CPU and one on the meta
    device is uninitialised memory. That is what a head sees of an embedding which was offloaded.

    Raises:
        TypeError: not a tensor.
        ValueError: another width, device or dtype, or weights that are still sharded.
    """
    if not isinstance(hidden, Tensor):
        raise TypeError(f"hidden: expected a tensor, got {type(hidden).__name__}")
    if hidden.shape[-1:] != matrix.shape[-1:]:
        raise ValueError(
            f"hidden: expected (..., {matrix.shape[-1]}), the embedding_dim of this head, got "
            f"{tuple(hidden.shape)}"
        )
    # Compilers trace what is unsharded already.
    if not torch.compiler.is_compiling() and is_sharded(matrix) and not is_sharded(hidden):
        raise ValueError(
            "hidden: expected a head whose weights FSDP has gathered, got sharded ones, because "
            "this method was not announced; call register_fsdp_forward_method(head, 'loss') and "
            "likewise for 'logits' after fully_shard(head)"
        )
    if hidden.device != matrix.device:
        raise ValueError(
            f"hidden: expected on {matrix.device}, where this head's matrix is, got "
            f"{hidden.device}; move one of them. A matrix on meta was offloaded with the input "
            "embedding: untie(model) before offloading, or keep the embedding in memory"
        )
    kind = hidden.device.type
    if hidden.dtype == matrix.dtype or (
        kind in AUTOCAST_DEVICES and torch.is_autocast_enabled(kind)
    ):
        return
    raise ValueError(
        f"hidden: expected {matrix.dtype} as this head's matrix is, got {hidden.dtype}; cast one "
        "of them, or run under torch.autocast"
    )
