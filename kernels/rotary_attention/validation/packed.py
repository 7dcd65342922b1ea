"""Checks of packed sequences: shapes at the call, numbers where the operator runs."""

from itertools import pairwise

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.kinds import require_tensor

LENGTHS = "it holds where sequences begin, not their lengths: F.pad(lengths.cumsum(0), (1, 0))"


def check_packed(
    cu_query: Tensor | None,
    cu_key: Tensor | None,
    query: Tensor,
    *,
    key_lengths: Tensor | None,
    attention_mask: Tensor | None,
) -> None:
    """Cumulative lengths as far as shapes tell; `check_packed_values` reads the numbers."""
    if cu_query is None:
        if cu_key is not None:
            raise ValueError(
                "cu_seqlens_key needs cu_seqlens_query, got None for it; pass both, or "
                "cu_seqlens_query alone where queries and keys are the same tokens"
            )
        return
    for name, cu in (("cu_seqlens_query", cu_query), ("cu_seqlens_key", cu_key)):
        if cu is None:
            continue
        require_tensor(name, cu)
        if cu.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must be int32 or int64, got {cu.dtype}; convert with .int()")
        if cu.ndim != 1 or cu.shape[0] < 2:
            raise ValueError(
                f"{name} must have shape (sequences + 1,) with at least one sequence, "
                f"got {tuple(cu.shape)}"
            )
        if cu.device != query.device:
            raise ValueError(f"{name} must be on {query.device}, got {cu.device}")
    if cu_key is not None and cu_key.shape != cu_query.shape:
        raise ValueError(
            f"cu_seqlens_query and cu_seqlens_key must hold equally many sequences, got "
            f"{cu_query.shape[0] - 1} and {cu_key.shape[0] - 1}"
        )
    if query.shape[0] != 1:
        raise ValueError(
            f"packed sequences lie one after another in a batch of 1, got batch {query.shape[0]}; "
            f"pass query (1, heads, tokens, head_dim)"
        )
    for name, given in (("key_lengths", key_lengths), ("attention_mask", attention_mask)):
        if given is not None:
            raise ValueError(
                f"{name} cannot be combined with cu_seqlens_query, which says where sequences end; "
                f"leave out the padding, or one of the two"
            )


def check_packed_values(name: str, cu: Tensor, tokens: int) -> None:
    """From 0, never falling, to the number of tokens. Reads the numbers back to the host."""
    bounds = cu.tolist()
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
