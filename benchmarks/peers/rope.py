"""RoPE in plain torch, as most models have it: x ⊙ cos + rotate_half(x) ⊙ sin in x's dtype."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention import Branch, PositionMap

if TYPE_CHECKING:
    from benchmarks.attention import AttentionWorkload

Table = tuple[Tensor, Tensor]


def apply_rope(x: Tensor, table: Table | None) -> Tensor:
    """The rotated x; x itself without a table."""
    if table is None:
        return x
    cos, sin = table
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def tables(workload: "AttentionWorkload", branch: Branch) -> tuple[Table | None, Table | None]:
    """Cosines and sines of a branch's queries and keys, each (sequence, head_dim).

    A model makes them once for all layers, so that they are not timed. Where a branch leaves keys
    at position 0 there is no table: nobody would multiply by one.
    """
    return (
        _table(workload, branch.query, workload.query_positions),
        _table(workload, branch.key, workload.key_positions),
    )


def _table(workload: "AttentionWorkload", mapping: PositionMap, positions: Tensor) -> Table | None:
    mapped = mapping(positions)
    if not bool(mapped.any()):
        return None
    frequencies = workload.rotary.inverse_frequencies().to(positions.device)
    angles = (mapped[:, None] * frequencies).repeat(1, 2)
    dtype = workload.shape.dtype
    return angles.cos().to(dtype), angles.sin().to(dtype)
