"""Positions as the kernels take them: 32 bits wide, counted from where a row of queries ends."""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.positions import sequence_of
from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.schedule import block_index

HUGE = 2**29 - 1


def fractional(problem: Problem) -> bool:
    given = problem.query_positions, problem.key_positions
    return any(x is not None and x.is_floating_point() for x in given)


def position_arguments(problem: Problem) -> dict[str, Any]:
    """Positions, blocks, whether they ascend, and the strides between rows of the batch."""
    p = problem
    names = ("query_positions", "key_positions", "query_blocks", "key_blocks")
    if p.by_index:
        none = dict.fromkeys((*names, "keys_ordered", "queries_ordered"))
        return none | {"query_places": 0, "key_places": 0}
    dtype = torch.float32 if fractional(p) else torch.int32
    wide = from_last_query(p)
    positions = [x.to(dtype).contiguous() for x in wide]
    blocks = positions
    if p.unit > 1 or fractional(p):
        blocks = [block_index(x, p.unit).to(dtype).contiguous() for x in wide]
    result: dict[str, Any] = dict(zip(names, (*positions, *blocks), strict=True))
    result["query_places"], result["key_places"] = (
        0 if x.shape[0] == 1 else x.shape[1] for x in positions
    )
    result["queries_ordered"] = _ascends(positions[0], p.cu_seqlens_query)
    result["keys_ordered"] = _ascends(positions[1], p.cu_seqlens_key)
    return result


def from_last_query(problem: Problem) -> tuple[Tensor, Tensor]:
    """Positions of queries and keys relative to the block of each row's last query.

    In a packed batch, of each sequence's: those of others it never meets.

    Visibility is a matter of differences, and those of positions beyond 2³¹, or of fractional ones
    beyond 2²⁴, do not survive 32 bits. Here they are int64, or float64 where either side is
    floating. The base is a multiple of the rule's unit, so that blocks move as a whole. Further
    apart than `HUGE` is as far as `HUGE`: a key at 2⁶³ − 1 that nobody should see stays hidden.
    """
    see, unit = problem.visibility, problem.unit
    wide = torch.float64 if fractional(problem) else torch.int64
    query, key = see.query_positions.to(wide), see.key_positions.to(wide)
    cu_query, cu_key = problem.cu_seqlens_query, problem.cu_seqlens_key
    if cu_query is None or cu_key is None:
        of_query = of_key = block_index(query.amax(-1, keepdim=True), unit) * unit
    else:
        last = (cu_query[1:].long() - 1).clamp(min=0)  # a sequence without queries sees no key
        base = block_index(query[:, last], unit) * unit
        of_query = base[:, sequence_of(cu_query, query.shape[-1])]
        of_key = base[:, sequence_of(cu_key, key.shape[-1])]
    # Distances stay below the edge that stands for none (ranges.NO_EDGE).
    return (query - of_query).clamp(unit - HUGE, HUGE), (key - of_key).clamp(unit - HUGE, HUGE)


def _ascends(positions: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Whether positions ascend in every row or packed sequence: int32 (1,), never read back."""
    falls = positions[:, 1:] < positions[:, :-1]
    if cu_seqlens is not None:
        begins = torch.zeros(positions.shape[1] + 1, dtype=torch.bool, device=positions.device)
        begins[cu_seqlens.long()] = True
        falls = falls & ~begins[1:-1]
    return (~falls.any()).to(torch.int32)[None]
