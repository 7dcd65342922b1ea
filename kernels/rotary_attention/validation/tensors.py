"""Checks of query, key and value, of positions and of whatever is as long as they are."""

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.kinds import require_tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
POSITIONS = (*INTEGERS, torch.float32, torch.float64)


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Ranks, dtypes, devices and sizes of query, key and value."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        require_tensor(name, x)
        if x.ndim != 4:
            packed = "; packed (tokens, heads, head_dim) becomes one with x.transpose(0, 1)[None]"
            raise ValueError(
                f"{name} must have 4 dimensions (batch, heads, sequence, head_dim), "
                f"got shape {tuple(x.shape)}{packed if x.ndim == 3 else ''}"
            )
        if x.dtype not in FLOATS:
            raise TypeError(
                f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}; "
                f"convert it with .to(torch.float32)"
            )
        if x.dtype != query.dtype:
            raise ValueError(
                f"query, key and value must share a dtype, got query {query.dtype} and "
                f"{name} {x.dtype}; convert one of them"
            )
        if x.device != query.device:
            raise ValueError(
                f"query, key and value must be on one device, got query on {query.device} and "
                f"{name} on {x.device}; move one of them"
            )
        if x.shape[0] != query.shape[0]:
            raise ValueError(
                f"query, key and value must share the batch size, got {query.shape[0]} for query "
                f"and {x.shape[0]} for {name}"
            )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"query and key must share head_dim, got {query.shape[-1]} and {key.shape[-1]}"
        )
    if query.shape[-1] == 0:
        raise ValueError(
            "query and key must have a head_dim of at least 1, got 0; scores of nothing have no "
            "scale of 1/√head_dim"
        )
    if key.shape[1:3] != value.shape[1:3]:
        raise ValueError(
            f"key and value must share heads and length, got {tuple(key.shape[1:3])} and "
            f"{tuple(value.shape[1:3])}"
        )
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads == 0 or kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"the query's heads must be a multiple of the key's, got {heads} and {kv_heads}; "
            f"both need at least one"
        )


def check_positions(name: str, positions: Tensor, batch: int, length: int, device: object) -> None:
    """Shape (sequence,) or (1 | batch, sequence), integer or float."""
    require_tensor(name, positions)
    if positions.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"{name} must be integer, float32 or float64, got {positions.dtype}, which cannot "
            f"tell positions beyond 256 (bfloat16) or 2048 (float16) apart"
        )
    if positions.dtype not in POSITIONS:
        raise ValueError(
            f"{name} must be integer (int8 to int64 or uint8), float32 or float64, "
            f"got {positions.dtype}; convert them with .long() or .float()"
        )
    if positions.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient, because this op has none for them; rotate the "
            f"queries and keys beforehand and pass rotary=None, or detach them"
        )
    shapes = ((length,), (1, length), (batch, length))
    if tuple(positions.shape) not in shapes:
        raise ValueError(
            f"{name} must have shape ({length},) or ({batch}, {length}), "
            f"got {tuple(positions.shape)}"
        )
    if positions.device != device:
        raise ValueError(f"{name} must be on {device} as the query is, got {positions.device}")


def check_sinks(sinks: Tensor | None, query: Tensor) -> None:
    """One logit per query head."""
    if sinks is None:
        return
    require_tensor("sinks", sinks)
    if tuple(sinks.shape) != (query.shape[1],):
        raise ValueError(
            f"sinks must have one logit per query head, shape ({query.shape[1]},), "
            f"got {tuple(sinks.shape)}"
        )
    if sinks.dtype not in FLOATS or sinks.device != query.device:
        raise ValueError(
            f"sinks must be floating point on {query.device}, got {sinks.dtype} on {sinks.device}"
        )


def check_key_lengths(key_lengths: Tensor | None, query: Tensor) -> None:
    """One integer per row of the batch."""
    if key_lengths is None:
        return
    require_tensor("key_lengths", key_lengths)
    integer = not (key_lengths.is_floating_point() or key_lengths.is_complex())
    if not integer or key_lengths.dtype == torch.bool:
        raise TypeError(f"key_lengths must be integer, got {key_lengths.dtype}")
    if tuple(key_lengths.shape) != (query.shape[0],):
        raise ValueError(
            f"key_lengths must have shape ({query.shape[0]},), got {tuple(key_lengths.shape)}"
        )
    if key_lengths.device != query.device:
        raise ValueError(f"key_lengths must be on {query.device}, got {key_lengths.device}")


def check_mask(mask: Tensor | None, query: Tensor, keys: int) -> None:
    """Boolean or additive, broadcastable to (batch, heads, query, key)."""
    if mask is None:
        return
    require_tensor("attention_mask", mask)
    batch, heads, queries, _ = query.shape
    allowed = ((1, batch), (1, heads), (1, queries), (keys,))
    if mask.ndim != 4 or any(n not in ok for n, ok in zip(mask.shape, allowed, strict=True)):
        hint = ""
        if tuple(mask.shape) == (queries, keys):
            hint = "; a mask of all pairs becomes one with mask[None, None]"
        elif mask.ndim == 2 and mask.shape[0] in (1, batch) and mask.shape[1] == keys:
            hint = "; a padding mask of tokens becomes one with mask[:, None, None, :].bool()"
        raise ValueError(
            f"attention_mask must have shape (1 or {batch}, 1 or {heads}, 1 or {queries}, {keys}), "
            f"got {tuple(mask.shape)}{hint}"
        )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"attention_mask must be boolean (True is visible) or floating point (added to the "
            f"scores), got {mask.dtype}; convert a 0/1 mask with .bool()"
        )
    if mask.requires_grad:
        raise ValueError("attention_mask must not require a gradient, because this op has none")
    if mask.device != query.device:
        raise ValueError(f"attention_mask must be on {query.device}, got {mask.device}")
