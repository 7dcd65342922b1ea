"""Where queries and keys are, if the caller does not say: by index, the last query at the last key.

    key j at j;  query i at (key positions)[last] − (queries − 1 − i)

With `key_lengths` the last key is each row's last valid one; in a packed batch both restart with
every sequence. All of it stays on the device, so that nothing waits for a GPU. Where both are the
default ones the operator is given neither, and who needs them as tensors makes them (`problem.py`).
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention import validation

if TYPE_CHECKING:
    from ropewalk.kernels.rotary_attention.problem import Problem


def key_positions(positions: Tensor | None, query: Tensor, keys: int, cu: Tensor | None) -> Tensor:
    """(1 | batch, key); `cu` are the keys' cumulative lengths in a packed batch."""
    if positions is not None:
        validation.check_positions("key_positions", positions, query.shape[0], keys, query.device)
        return _rows(positions)
    index = torch.arange(keys, device=query.device)
    return index[None] if cu is None else (index - cu[sequence_of(cu, keys)])[None]


def query_positions(
    positions: Tensor | None,
    query: Tensor,
    keys: int,
    key_at: Tensor | None,
    key_lengths: Tensor | None,
    cu_seqlens: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """(1 | batch, query); by default the last query sits at the last key that is valid.

    Args:
        positions: those that the caller gave.
        query: (…, query, head_dim).
        keys: how many there are.
        key_at: positions of the keys, (1 | batch, key); None if they are the default ones.
        key_lengths: valid keys of each row.
        cu_seqlens: cumulative lengths of a packed batch's queries and keys.
    """
    queries = query.shape[-2]
    if positions is not None:
        validation.check_positions(
            "query_positions", positions, query.shape[0], queries, query.device
        )
        return _rows(positions)
    if cu_seqlens is not None:
        cu_query, cu_key = cu_seqlens
        sequence = sequence_of(cu_query, queries)
        back = torch.arange(queries, device=query.device) - (cu_query[1:] - 1)[sequence]
        if keys == 0:
            return back[None] - 1
        last = (cu_key[1:].long() - 1).clamp(0, keys - 1)
        key_at = key_positions(None, query, keys, cu_key) if key_at is None else key_at
        return key_at[:, last][:, sequence] + back
    back = torch.arange(1 - queries, 1, device=query.device)
    if keys == 0:
        return back[None] - 1
    if key_lengths is None:
        return back[None] + (keys - 1) if key_at is None else key_at[:, -1:] + back
    last = (key_lengths[:, None].long() - 1).clamp(0, keys - 1)
    if key_at is not None:
        last = key_at.expand(query.shape[0], -1).gather(1, last)
    return last + back


def _rows(positions: Tensor) -> Tensor:
    """(1 | batch, sequence); integers as int64, because differences of small ones would wrap."""
    positions = positions if positions.is_floating_point() else positions.long()
    return positions if positions.ndim == 2 else positions[None]


def context_length(positions: Tensor | None, keys: int, cu_key: Tensor | None) -> int | Tensor:
    """One more than the greatest key position, for frequency rules that depend on it."""
    # Without any key there is a context of no tokens, whose length no rule could use.
    if positions is not None and positions.numel() > 0:
        return positions.amax() + 1
    if cu_key is not None:
        return cu_key.diff().amax().clamp(min=1)
    return max(keys, 1)


def sequence_of(cu: Tensor, tokens: int) -> Tensor:
    """Which sequence of a packed batch each token belongs to; sequences may be empty."""
    index = torch.arange(tokens, device=cu.device, dtype=cu.dtype)
    # Lengths that do not add up are refused where they can be read; here they must stay in range.
    return torch.searchsorted(cu[1:], index, right=True).clamp(max=cu.shape[0] - 2)


def index_shift(problem: "Problem") -> int | None:
    """Query 0's key index, if queries and keys both count up by one and no query has a later key.

    Distances are then differences of indices. None for any other positions, or if the blocks of a
    rule with a unit would not begin at multiples of it. Reads positions back to the host unless
    they are the default ones.
    """
    batch, _, queries, _ = problem.query.shape
    keys = problem.key.shape[2]
    if problem.by_index or min(batch, queries, keys) == 0:
        return keys - queries
    v = problem.visibility
    if not (_counts_up(v.query_positions) and _counts_up(v.key_positions)):
        return None
    shifts = (v.query_positions[:, :1] - v.key_positions[:, :1]).flatten().tolist()
    shift, starts = shifts[0], v.key_positions[:, 0].tolist()
    if any(other != shift for other in shifts) or shift + queries > keys:
        return None
    if not math.isfinite(shift) or shift != int(shift):
        return None
    return int(shift) if all(start % v.unit == 0 for start in starts) else None


def _counts_up(positions: Tensor) -> bool:
    steps = torch.arange(positions.shape[-1], device=positions.device)
    return bool((positions == positions[:, :1] + steps).all())
