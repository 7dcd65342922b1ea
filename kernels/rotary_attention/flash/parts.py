"""The branches of a distance rule as ordinary attention: which queries meet which keys, and how.

For keys at 0 … keys − 1 and queries at shift … shift + queries − 1, branch b of a rule of unit 1
holds the distances edge_b ≤ Δ < edge_{b+1}. Without their last edge_b keys, its queries see a
causal sliding window of edge_{b+1} − edge_b keys: near attention is a sliding window, and far
attention is causal attention of the queries from the window on to keys shifted by the window.

With a unit of u tokens a branch holds whole blocks of keys instead, so that each block of queries
meets a rectangle, except for the causal square of its own block.

Every visible pair is in exactly one part, and every query of a part sees at least one key of it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from ropewalk.kernels.rotary_attention.problem import Problem


class Part(NamedTuple):
    """Attention of some queries to some keys through one branch.

    Attributes:
        branch: whose rotations apply.
        queries: which queries.
        keys: which keys; at least as many as queries if causal.
        causal: whether the last query sees all keys, and each one before it one key less.
        window: of a causal part, how many keys a query sees at most; None for all.
    """

    branch: int
    queries: slice
    keys: slice
    causal: bool
    window: int | None


def parts(problem: Problem, shift: int) -> list[Part]:
    """The parts of a dense problem whose query 0 sits at key `shift`, branch by branch."""
    p, queries, keys = problem, problem.query.shape[2], problem.key.shape[2]
    if p.query.numel() == 0 or p.key.numel() == 0:
        return []
    if not p.causal:
        return [Part(0, slice(0, queries), slice(0, keys), causal=False, window=None)]
    found = _tokens(p, shift, queries) if p.unit == 1 else _blocks(p, shift, queries)
    return sorted(found, key=lambda part: part.branch)


def _tokens(p: Problem, shift: int, queries: int) -> Iterator[Part]:
    limit = math.inf if p.sliding_window is None else p.sliding_window
    for branch, (low, high) in enumerate(_bounds(p)):
        high = min(high, limit)
        first = max(0, low - shift)  # the first query that has a key so far behind it
        if low >= high or first >= queries:
            return
        stop = shift + queries - low
        start = 0 if high == math.inf else max(0, shift + first - int(high) + 1)
        window = None if high - low >= stop - start else int(high) - low
        yield Part(branch, slice(first, queries), slice(start, stop), causal=True, window=window)


def _blocks(p: Problem, shift: int, queries: int) -> Iterator[Part]:
    unit, end = p.unit, shift + queries
    for block in range(max(shift, 0) // unit, -(-end // unit)):
        first, last = max(block * unit, shift), min((block + 1) * unit, end)
        rows = slice(first - shift, last - shift)
        for branch, (low, high) in enumerate(_bounds(p)):
            start = 0 if high == math.inf else max(0, (block - int(high) + 1) * unit)
            stop = last if low == 0 else (block - low + 1) * unit
            if start < stop:
                yield Part(branch, rows, slice(start, stop), causal=low == 0, window=None)


def _bounds(p: Problem) -> Iterator[tuple[int, float]]:
    """The distances [low, high) of each branch, in units."""
    return zip((0, *p.edges), (*p.edges, math.inf), strict=True)
