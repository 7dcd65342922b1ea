"""Which keys a block of queries has to look at, and through which branch of the distance rule.

For one block of queries the keys fall into *runs*: hidden from every query (skipped), wholly in one
branch (one dot product), or straddling an edge (one dot product for each branch). Under ReRoPE a
causal block has the runs far | straddling | near | diagonal, so that all branches together cost one
attention plus a band as wide as the block: O(query · key) time as plain attention has, O(key)
memory for the schedule.

Large blocks run fast and small ones waste little, so the schedule goes from coarse to fine: what is
uniform for a thousand queries is one piece, and only the rest is looked at again by fewer queries.

Whether a key is hidden or which branch it takes is bounded by intervals: of each key, the least and
the greatest distance to the block's queries, row by row of the batch, so that a row's left padding
cancels. The bounds hold for positions in any order; sorted positions just make few runs of them.
"""

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

MAX_RUNS = 16


class Visibility(NamedTuple):
    """What decides whether a query sees a key; see `rotary_attention` for the meanings.

    Neither the batch nor the queries nor the keys may be none. Rows of different lengths are
    problems of their own (varlen.py).

    Attributes:
        query_positions: (1 | batch, query).
        key_positions: (1 | batch, key).
        edges: thresholds on the block distance, ascending.
        unit: block size in which distance is measured.
        causal: whether keys at later positions are hidden.
        sliding_window: keys at this distance and beyond are hidden.
        attention_mask: boolean (True is visible) or additive, (1 | batch, 1 | heads,
            1 | query, key).
    """

    query_positions: Tensor
    key_positions: Tensor
    edges: tuple[int, ...]
    unit: int
    causal: bool
    sliding_window: int | None
    attention_mask: Tensor | None


class Run(NamedTuple):
    """Neighbouring keys [start, stop) that a block of queries treats alike.

    Attributes:
        start: first key.
        stop: one past the last key.
        nearest: the least branch that a pair may take.
        farthest: the greatest one.
        masked: whether some pairs may be hidden or biased.
    """

    start: int
    stop: int
    nearest: int
    farthest: int
    masked: bool

    @property
    def uniform(self) -> bool:
        """Whether all pairs are visible, unbiased and of one branch."""
        return not self.masked and self.nearest == self.farthest


class Piece(NamedTuple):
    """Queries [start, stop) times a run of keys: one dot product of blocks, or one per branch."""

    start: int
    stop: int
    run: Run


def pieces(visibility: Visibility, sizes: tuple[int, ...]) -> list[Piece]:
    """Pieces that together hold every visible pair exactly once.

    Args:
        visibility: what is seen.
        sizes: numbers of queries in a block, descending; pieces that are not uniform have the last.
    """
    queries, keys = visibility.query_positions.shape[-1], visibility.key_positions.shape[-1]
    return list(_pieces(visibility, (0, queries), (0, keys), sizes))


def _pieces(
    visibility: Visibility, queries: tuple[int, int], keys: tuple[int, int], sizes: tuple[int, ...]
) -> Iterator[Piece]:
    for start in range(*queries, sizes[0]):
        stop = min(start + sizes[0], queries[1])
        ragged: list[tuple[int, int]] = []
        for run in key_runs(visibility, start, stop, keys):
            if run.uniform or len(sizes) == 1:
                yield Piece(start, stop, run)
            elif ragged and ragged[-1][1] == run.start:
                ragged[-1] = (ragged[-1][0], run.stop)
            else:
                ragged.append((run.start, run.stop))
        for span in ragged:
            yield from _pieces(visibility, (start, stop), span, sizes[1:])


def mask_rows(mask: Tensor, start: int, stop: int) -> Tensor:
    """The rows of queries [start, stop) of a mask that may have one row for all queries."""
    return mask if mask.shape[-2] == 1 else mask[..., start:stop, :]


def mask_shows(mask: Tensor) -> Tensor:
    """Where a boolean or additive mask leaves a pair visible.

    An additive mask hides by −∞ or by the least finite number of its dtype, which many write for
    it: taken as a bias, that would give keys that nobody should see their own softmax.
    """
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def block_index(positions: Tensor, unit: int) -> Tensor:
    """floor(position / unit) of integer or float positions."""
    if unit == 1:
        return positions.floor() if positions.is_floating_point() else positions
    return torch.div(positions, unit, rounding_mode="floor")


def _interval(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Of each key, the least and the greatest difference to a query, over the batch's rows."""
    least = queries.amin(-1, keepdim=True) - keys
    greatest = queries.amax(-1, keepdim=True) - keys
    # Row by row, because torch's reductions over the first dimension are slow for integers.
    return reduce(torch.minimum, least), reduce(torch.maximum, greatest)


def key_runs(
    visibility: Visibility, start: int, stop: int, among: tuple[int, int] | None = None
) -> list[Run]:
    """The runs of keys for queries [start, stop), hidden keys left out, in ascending order.

    Args:
        visibility: what is seen.
        start: first query.
        stop: one past the last query.
        among: the keys [first, end) to look at; all of them if None.
    """
    v = visibility
    first, end = (0, v.key_positions.shape[-1]) if among is None else among
    queries, keys = v.query_positions[:, start:stop], v.key_positions[:, first:end]
    least, greatest = _interval(queries, keys)
    hidden = torch.zeros_like(least, dtype=torch.bool)
    masked = torch.zeros_like(hidden)
    if v.causal:
        hidden |= greatest < 0
        masked |= least < 0
    if v.sliding_window is not None:
        hidden |= (least >= v.sliding_window) | (greatest <= -v.sliding_window)
        masked |= (greatest >= v.sliding_window) | (least <= -v.sliding_window)
    if v.attention_mask is not None:
        rows = mask_rows(v.attention_mask, start, stop)[..., first:end]
        seen = mask_shows(rows)
        plain = rows if rows.dtype == torch.bool else rows == 0
        # Least and greatest rather than `all` and `any`, which reduce first dimensions slowly.
        hidden |= ~seen.amax((0, 1, 2))
        masked |= ~plain.amin((0, 1, 2))
    nearest = torch.zeros_like(hidden, dtype=torch.int64)
    farthest = torch.zeros_like(nearest)
    if v.edges:
        least, greatest = _interval(block_index(queries, v.unit), block_index(keys, v.unit))
        for edge in v.edges:
            nearest += least >= edge
            farthest += greatest >= edge
    branches = len(v.edges) + 1
    code = ((nearest * branches + farthest) * 2 + masked).masked_fill(hidden, -1)
    return _merge(list(_decode(code, branches, first)))


def _decode(code: Tensor, branches: int, start: int) -> Iterator[Run]:
    values, counts = torch.unique_consecutive(code, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value >= 0:
            nearest, farthest = divmod(value // 2, branches)
            yield Run(start, start + count, nearest, farthest, bool(value % 2))
        start += count


def _merge(runs: list[Run]) -> list[Run]:
    """One masked run over everything if shuffled positions or a ragged mask make too many."""
    if len(runs) <= MAX_RUNS:
        return runs
    nearest, farthest = min(run.nearest for run in runs), max(run.farthest for run in runs)
    return [Run(runs[0].start, runs[-1].stop, nearest, farthest, masked=True)]


def branch_of_pairs(visibility: Visibility, piece: Piece) -> Tensor:
    """Branch index of each pair, (1 | batch, query, key)."""
    start, stop, run = piece
    queries = block_index(visibility.query_positions[:, start:stop], visibility.unit)
    keys = block_index(visibility.key_positions[:, run.start : run.stop], visibility.unit)
    distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
    branch = torch.zeros_like(distance, dtype=torch.int64)
    for edge in visibility.edges:
        branch += distance >= edge
    return branch


def hidden_pairs(visibility: Visibility, piece: Piece) -> Tensor:
    """Pairs that positions hide, boolean (1 | batch, query, key).

    The attention mask is not among them, because it may differ by head.
    """
    v, (start, stop, run) = visibility, piece
    queries = v.query_positions[:, start:stop].unsqueeze(-1)
    distance = queries - v.key_positions[:, run.start : run.stop].unsqueeze(-2)
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if v.causal:
        hidden |= distance < 0
    if v.sliding_window is not None:
        hidden |= distance.abs() >= v.sliding_window
    return hidden
