"""What the kernels of one problem share: their arguments, the grid and the tensors they read.

Queries and keys are rotated to every branch here, before the attention; keys of branches whose
position is 0 throughout are the caller's own (ReRoPE's far keys), and branches that place keys
alike share one copy (dual chunk attention's three).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.triton.positions import (
    HUGE,
    fractional,
    position_arguments,
)
from ropewalk.kernels.rotary_attention.triton.turn import empty_turned, turn
from ropewalk.kernels.sizes import ceil_divide, power_of_two


@dataclass(frozen=True)
class Geometry:
    """A problem as the kernels take it.

    Attributes:
        problem: what is asked.
        queries: rotated to every branch, (branches, batch, heads, query, head_dim).
        keys: of every branch, each (batch, kv_heads, key, head_dim).
        value: with a contiguous last dimension.
        arguments: by name, those that all kernels share.
    """

    problem: Problem
    queries: Tensor
    keys: tuple[Tensor, ...]
    value: Tensor
    arguments: dict[str, Any]

    @property
    def branches(self) -> int:
        return len(self.keys)


def aligned(x: Tensor) -> bool:
    """Whether every row of `x` begins at a multiple of 16 bytes, what a thread loads at once."""
    strides = (s for s, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1)
    return x.data_ptr() % 16 == 0 and all(s * x.element_size() % 16 == 0 for s in strides)


def contiguous_rows(x: Tensor) -> Tensor:
    """`x` with a contiguous last dimension, and aligned rows where its width allows them.

    A copy only where it has not; one that would lie as `x` does is not made.
    """
    allows = x.shape[-1] * x.element_size() % 16 == 0
    return x if x.stride(-1) == 1 and (aligned(x) or not allows) else x.contiguous()


def aligned_rows(x: Tensor) -> Tensor:
    """`x` in rows that begin at multiples of 16 bytes, with zeros up to the next one's begin.

    A copy only where it does not lie so. Without it a thread of the kernels would load element by
    element and keep an address for each.
    """
    width = ceil_divide(x.shape[-1] * x.element_size(), 16) * 16 // x.element_size()
    if x.shape[-1] == width and x.stride(-1) == 1 and aligned(x):
        return x
    rows = x.new_zeros(*x.shape[:-1], width)
    rows[..., : x.shape[-1]] = x
    return rows


def with_aligned_rows(problem: Problem) -> Problem:
    """The same with `aligned_rows`: zeros turn into zeros and change no product."""
    p = problem
    query, key, value = map(aligned_rows, (p.query, p.key, p.value))
    return replace(p, query=query, key=key, value=value)


def turn_queries(problem: Problem) -> Tensor:
    """Queries at the positions of every branch, times their factor."""
    p, query = problem, problem.query
    if p.inverse_frequencies.numel() == 0 and p.query_factor is None:
        return query[None]
    turned = empty_turned(query, p.query_angles.shape[0])
    turn(query, turned, **_turning(p, p.query_angles), row_factor=_row_factor(p), back=False)
    return turned


def turn_keys(problem: Problem) -> tuple[Tensor, ...]:
    """Keys at the positions of every branch."""
    p, key = problem, problem.key
    copies = p.key_copies
    if p.inverse_frequencies.numel() == 0 or max(copies) < 0:
        return (key,) * len(copies)
    # Copies are numbered in the order in which branches first need them.
    angles = torch.stack([p.key_angles[copies.index(n)] for n in range(max(copies) + 1)])
    turned = empty_turned(key, len(angles))
    turn(key, turned, **_turning(p, angles, factor=False), row_factor=None, back=False)
    return tuple(key if copy < 0 else turned[copy] for copy in copies)


def turn_back_queries(problem: Problem, gradients: Tensor) -> Tensor:
    """Gradient of the queries from those of the rotated ones, (branches, …)."""
    p = problem
    if p.inverse_frequencies.numel() == 0 and p.query_factor is None:
        return gradients[0]
    grad = torch.empty(p.query.shape, dtype=p.query.dtype, device=p.query.device)
    turn(grad, gradients, **_turning(p, p.query_angles), row_factor=_row_factor(p), back=True)
    return grad


def turn_back_keys(problem: Problem, gradients: Tensor) -> Tensor:
    """Gradient of the keys from those of the rotated ones, (branches, …)."""
    p = problem
    grad = torch.empty(p.key.shape, dtype=p.key.dtype, device=p.key.device)
    turn(grad, gradients, **_turning(p, p.key_angles, factor=False), row_factor=None, back=True)
    return grad


def _turning(problem: Problem, positions: Tensor, *, factor: bool = True) -> dict[str, Any]:
    """The attention factor goes to the queries, squared, so that keys may stay as they are."""
    p = problem
    rotated = p.inverse_frequencies.numel() > 0
    return {
        "positions": positions.to(torch.float32).contiguous(),
        "inverse_frequencies": p.inverse_frequencies.to(torch.float32).contiguous(),
        "factor": p.attention_factor.to(torch.float32).square() if factor and rotated else None,
        "interleaved": p.layout == "interleaved",
    }


def _row_factor(problem: Problem) -> Tensor | None:
    factor = problem.query_factor
    return None if factor is None else factor.to(torch.float32).contiguous()


def geometry(
    problem: Problem,
    *,
    queries: Tensor | None = None,
    keys: tuple[Tensor, ...] | None = None,
) -> Geometry:
    """Rotates what is to be rotated and collects the kernels' shared arguments.

    Args:
        problem: what is asked.
        queries: rotated to every branch, if that was done elsewhere.
        keys: of every branch, if the kernel rotates them itself.
    """
    p, value = problem, contiguous_rows(problem.value)
    queries = turn_queries(p) if queries is None else queries
    keys = turn_keys(p) if keys is None else keys
    filled = (*keys, *(keys[:1] * (3 - len(keys))))
    edges = [min(edge, HUGE) for edge in (*p.edges, HUGE, HUGE)[:2]]
    mask = p.attention_mask
    arguments: dict[str, Any] = {
        "query": queries,
        "value": value,
        "mask": None,
        "key_lengths": None if p.key_lengths is None else p.key_lengths.contiguous(),
        "cu_queries": None,
        "cu_keys": None,
        "query_branch": queries.stride(0),
        "query_batch": queries.stride(1),
        "query_head": queries.stride(2),
        "query_row": queries.stride(3),
        "value_batch": value.stride(0),
        "value_head": value.stride(1),
        "value_row": value.stride(2),
        "mask_batch": 0,
        "mask_head": 0,
        "mask_row": 0,
        "mask_column": 0,
        "heads": p.query.shape[1],
        "groups": p.query.shape[1] // p.key.shape[1],
        "queries": p.query.shape[2],
        "keys": p.key.shape[2],
        "edge1": edges[0],
        "edge2": edges[1],
        "unit": p.unit,
        "window": min(HUGE, p.sliding_window or HUGE),
        "steps": max(p.query.shape[2], p.key.shape[2]).bit_length() + 1,
        "scale": float(p.scale),
        "cap": 1.0 if p.softcap is None else float(p.softcap),
        "least": 0.0,
        "BRANCHES": len(keys),
        "HEAD_DIM": p.query.shape[-1],
        "VALUE_DIM": value.shape[-1],
        "HEAD_BLOCK": max(16, power_of_two(p.query.shape[-1])),
        "VALUE_BLOCK": max(16, power_of_two(value.shape[-1])),
        "CAUSAL": p.causal,
        "SLIDING": p.sliding_window is not None,
        "CAP": p.softcap is not None,
        "MASK": 0,
        "LENGTHS": p.key_lengths is not None,
        "PACKED": p.cu_seqlens_query is not None,
        "BY_INDEX": p.by_index,
        "UNITS": p.unit > 1 or fractional(p),
        "UPCAST": interpreted() and p.query.dtype != torch.float32,
        # Products of float32 are computed to float32's accuracy, by three of tensor cores' own.
        "PRECISION": "tf32x3" if p.query.dtype == torch.float32 else "tf32",
    }
    for branch, key in enumerate(filled):
        arguments[f"key{branch}"] = key
        arguments[f"key{branch}_batch"] = key.stride(0)
        arguments[f"key{branch}_head"] = key.stride(1)
        arguments[f"key{branch}_row"] = key.stride(2)
    if mask is not None:
        boolean = mask.dtype == torch.bool
        # Boolean tensors are read as bytes; additive ones hide at the least number of their dtype.
        arguments["mask"] = mask.view(torch.uint8) if boolean else mask
        arguments["MASK"] = 1 if boolean else 2
        arguments["least"] = 0.0 if boolean else torch.finfo(mask.dtype).min
        names = ("mask_batch", "mask_head", "mask_row", "mask_column")
        for name, size, stride in zip(names, mask.shape, mask.stride(), strict=True):
            arguments[name] = 0 if size == 1 else stride
    if p.cu_seqlens_query is not None and p.cu_seqlens_key is not None:
        arguments["cu_queries"] = p.cu_seqlens_query.to(torch.int32)
        arguments["cu_keys"] = p.cu_seqlens_key.to(torch.int32)
    arguments |= position_arguments(p)
    return Geometry(p, queries, keys, value, arguments)


def packed_tiles(cu_seqlens: Tensor, total: int, block: int) -> Tensor:
    """Which packed sequence each program serves and where in it: int32 (programs, 2).

    There are as many programs as the sequences could need at most, because their lengths are not
    read back; those without work get sequence −1.
    """
    lengths = cu_seqlens.diff().long()
    counts = (lengths + block - 1) // block
    ends = counts.cumsum(0)
    programs = torch.arange(total // block + len(lengths), device=cu_seqlens.device)
    sequence = torch.searchsorted(ends, programs, right=True)
    exists = sequence < len(lengths)
    sequence = sequence.clamp(max=max(len(lengths) - 1, 0))
    start = (programs - (ends - counts)[sequence]) * block
    sequence = torch.where(exists, sequence, -1)
    return torch.stack((sequence, start), -1).to(torch.int32).contiguous()
