"""Checks of what users pass to `rotary_attention`: each names what was expected and what came."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.kinds import (
    DISTANCE_RULE,
    ROTARY,
    has,
    is_integer,
    kind,
    require_tensor,
)
from ropewalk.kernels.rotary_attention.protocols import DistanceRule, QueryScale, Rotary

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Ranks, dtypes, devices and sizes of query, key and value."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        require_tensor(name, x)
        if x.ndim != 4:
            raise ValueError(
                f"{name} must have 4 dimensions (batch, heads, sequence, head_dim), "
                f"got shape {tuple(x.shape)}"
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


def check_rotary(rotary: Rotary | None, head_dim: int, branches: int) -> None:
    """Rotary dimension and layout; without a rotary a rule of several branches means nothing."""
    if rotary is None:
        if branches > 1:
            raise ValueError(
                f"expected a rotary for a distance rule of {branches} branches, got None; "
                f"such a rule rotates by itself, so pass the RotaryEmbedding and unrotated tensors"
            )
        return
    if not has(rotary, ROTARY):
        raise TypeError(
            f"rotary must have rotary_dim, layout, inverse_frequencies and attention_factor, as "
            f"RotaryEmbedding has, got {kind(rotary)}; or rotate beforehand and pass rotary=None"
        )
    if rotary.rotary_dim % 2 or not 0 < rotary.rotary_dim <= head_dim:
        raise ValueError(
            f"rotary_dim must be even, positive and at most head_dim {head_dim}, "
            f"got {rotary.rotary_dim}"
        )
    if rotary.layout not in ("half", "interleaved"):
        raise ValueError(f"layout must be 'half' or 'interleaved', got {rotary.layout!r}")


def check_frequencies(frequencies: Tensor, rotary_dim: int) -> None:
    """Shape of the inverse frequencies; learned ones would silently get no gradient."""
    if frequencies.shape != (rotary_dim // 2,):
        raise ValueError(
            f"inverse_frequencies must have shape ({rotary_dim // 2},) for rotary_dim "
            f"{rotary_dim}, got {tuple(frequencies.shape)}"
        )
    if frequencies.requires_grad:
        raise ValueError(
            "inverse_frequencies must not require a gradient, because this op has none for them; "
            "rotate the queries and keys beforehand and pass rotary=None, or detach them"
        )


def check_rule(rule: DistanceRule, *, causal: bool) -> None:
    """Branches, edges and unit of a distance rule."""
    if not has(rule, DISTANCE_RULE):
        raise TypeError(
            f"distance must have branches, edges and unit, as ReRoPE(window=…) has, "
            f"got {kind(rule)}"
        )
    if len(rule.edges) != len(rule.branches) - 1:
        raise ValueError(
            f"a distance rule needs one edge fewer than branches, got {len(rule.edges)} edges "
            f"and {len(rule.branches)} branches"
        )
    if not all(is_integer(number) for number in (rule.unit, *rule.edges)):
        raise TypeError(
            f"a distance rule's unit and edges must be integers, got unit {rule.unit!r} and edges "
            f"{tuple(rule.edges)}; convert them with int(…)"
        )
    if rule.unit < 1 or any(edge < 1 for edge in rule.edges):
        raise ValueError(
            f"a distance rule's unit and edges (its window) must be at least 1, "
            f"got unit {rule.unit} and edges {tuple(rule.edges)}"
        )
    if any(b <= a for a, b in zip(rule.edges[:-1], rule.edges[1:], strict=True)):
        raise ValueError(f"a distance rule's edges must ascend, got {tuple(rule.edges)}")
    if len(rule.branches) > 1 and not causal:
        raise ValueError(
            f"a distance rule of {len(rule.branches)} branches is defined for keys that come "
            f"before the query only, got causal=False; pass causal=True or the plain rule"
        )


def check_log_n(log_n: QueryScale | None) -> None:
    """A function of positions."""
    if log_n is not None and (isinstance(log_n, type) or not callable(log_n)):
        raise TypeError(
            f"log_n must be a function of positions such as LogN(length=512), got {kind(log_n)}"
        )


def check_positions(name: str, positions: Tensor, batch: int, length: int, device: object) -> None:
    """Shape (sequence,) or (1 | batch, sequence), integer or float."""
    require_tensor(name, positions)
    if positions.dtype == torch.bool or positions.is_complex():
        raise ValueError(f"{name} must be integer or float, got {positions.dtype}")
    if positions.dtype in (torch.bfloat16, torch.float16):
        raise ValueError(
            f"{name} must be integer, float32 or float64, got {positions.dtype}, which cannot "
            f"tell positions beyond 256 (bfloat16) or 2048 (float16) apart"
        )
    shapes = ((length,), (1, length), (batch, length))
    if tuple(positions.shape) not in shapes:
        raise ValueError(
            f"{name} must have shape ({length},) or ({batch}, {length}), "
            f"got {tuple(positions.shape)}"
        )
    if positions.device != device:
        raise ValueError(f"{name} must be on {device} as the query is, got {positions.device}")


def check_numbers(scale: float, sliding_window: int | None, softcap: float | None) -> None:
    """Finite scale, positive window and cap."""
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    if sliding_window is not None and not is_integer(sliding_window):
        raise TypeError(
            f"sliding_window must be an integer number of keys, got {sliding_window!r}; convert it "
            f"with int(…), or pass None for no window"
        )
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1, got {sliding_window}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(
            f"softcap must be positive and finite, got {softcap}; pass None for no cap"
        )


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
        raise ValueError(
            f"attention_mask must have shape (1 or {batch}, 1 or {heads}, 1 or {queries}, {keys}), "
            f"got {tuple(mask.shape)}"
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
        raise ValueError(f"{name} must begin with 0, got {bounds[0]}")
    falls = next((i for i, (a, b) in enumerate(pairwise(bounds)) if b < a), None)
    if falls is not None:
        raise ValueError(
            f"{name} must not decrease, got {bounds[falls]} followed by {bounds[falls + 1]}; it "
            f"holds where sequences begin, not their lengths: F.pad(lengths.cumsum(0), (1, 0))"
        )
    if bounds[-1] != tokens:
        raise ValueError(f"{name} must end at the number of tokens, {tokens}, got {bounds[-1]}")
