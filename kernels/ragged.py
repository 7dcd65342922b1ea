"""Packed sequences as batches of one length: padded where that is cheap, else one by one.

Sequences never touch each other, so that one that overflows leaves the others alone.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

WASTE = 2.0
"""Padding may at most make the batch so many times as long."""


def groups(cu_seqlens: Tensor) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Sequences that are computed together: their numbers, and where each begins and ends.

    Empty ones are left out.
    """
    bounds = [(i, a, b) for i, (a, b) in enumerate(pairwise(cu_seqlens.tolist())) if b > a]
    if not bounds:
        return
    longest, total = max(b - a for _, a, b in bounds), sum(b - a for _, a, b in bounds)
    together = longest * len(bounds) <= WASTE * total
    for some in [bounds] if together else [[one] for one in bounds]:
        numbers = torch.tensor([i for i, _, _ in some], device=cu_seqlens.device)
        yield numbers, [(a, b) for _, a, b in some]


def take(x: Tensor, places: list[tuple[int, int]], *, at_end: bool) -> Tensor:
    """(1, time, …) → (sequences, longest, …), zeros before or after the shorter ones."""
    if len(places) == 1:
        ((a, b),) = places
        return x[:, a:b]
    longest = max(b - a for a, b in places)
    padded = x.new_zeros(len(places), longest, *x.shape[2:])
    for row, (a, b) in zip(padded, places, strict=True):
        _part(row, b - a, at_end=at_end).copy_(x[0, a:b])
    return padded


def put(target: Tensor, x: Tensor, places: list[tuple[int, int]], *, at_end: bool) -> None:
    """Writes what is laid out as `take` gives it to where it came from."""
    for row, (a, b) in zip(x, places, strict=True):
        target[0, a:b] = _part(row, b - a, at_end=at_end)


def _part(row: Tensor, length: int, *, at_end: bool) -> Tensor:
    return row[row.shape[0] - length :] if at_end else row[:length]
