"""Ragged batches by cutting: sequences of equal lengths are the rows of one dense problem.

    packed: sequence s = queries cu_query[s] … cu_query[s+1] − 1 and the same of the keys
    by row: row b = all its queries and its first key_lengths[b] keys, with its rows of the mask

Nothing is padded. Where the sequences of a problem lie one after another its tensors are views,
else they are gathered, and its results scattered; a problem holds so few tokens that these copies
stay small. Sequences may be empty on either side: queries without keys get zeros and −∞.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from ropewalk.kernels import packing
from ropewalk.kernels.rotary_attention.problem import Problem

# Tokens times heads in a problem of several sequences: enough that calls cost next to nothing, and
# little beside the caches of a processor.
AT_ONCE = 2**16


class Selection(Protocol):
    """The queries, or the keys, of sequences of equal length."""

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """What `take` gives."""
        ...

    def take(self, x: Tensor) -> Tensor:
        """(batch, heads, sequence, …) → theirs, (sequences, heads, length, …)."""
        ...

    def put(self, target: Tensor, x: Tensor) -> None:
        """Writes what is shaped as `take` gives it to where it came from."""
        ...

    def positions(self, x: Tensor) -> Tensor:
        """(…, 1 | batch, sequence) → theirs, (…, 1 | sequences, length)."""
        ...


def check_lengths(problem: Problem) -> None:
    """Refuses cumulative lengths whose numbers are wrong; not while a CUDA graph is captured."""
    p = problem
    for name, cu, x in (
        ("cu_seqlens_query", p.cu_seqlens_query, p.query),
        ("cu_seqlens_key", p.cu_seqlens_key, p.key),
    ):
        if cu is not None:
            packing.check_numbers(name, cu, x.shape[2])


def is_ragged(problem: Problem) -> bool:
    """Whether sequences are packed, or rows have lengths of their own."""
    return problem.cu_seqlens_query is not None or problem.key_lengths is not None


def forward(dense: Callable[[Problem], Any], problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of all sequences by the dense forward."""
    p = problem
    output = p.query.new_zeros(*p.query.shape[:-1], p.value.shape[-1])
    logsumexp = p.query.new_full(p.query.shape[:-1], -torch.inf, dtype=p.dtype)
    for queries, keys in _groups(p):
        own = dense(_gathered(p, queries, keys))
        queries.put(output, own[0])
        queries.put(logsumexp, own[1])
    return output, logsumexp


def backward(
    dense: Callable[..., Any],
    problem: Problem,
    output: Tensor,
    logsumexp: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sinks by the dense backward."""
    p = problem
    of_query, of_key, of_value = (torch.zeros_like(x) for x in (p.query, p.key, p.value))
    no_sinks = p.query.new_empty(0, dtype=p.dtype)
    of_sinks = no_sinks if p.sinks is None else torch.zeros_like(p.sinks)
    for queries, keys in _groups(p):
        results = (queries.take(x) for x in (output, logsumexp, grad_output, grad_lse))
        own = dense(_gathered(p, queries, keys), *results)
        queries.put(of_query, own[0])
        keys.put(of_key, own[1])
        keys.put(of_value, own[2])
        if p.sinks is not None:
            of_sinks = of_sinks + own[3]
    return of_query, of_key, of_value, of_sinks


def outlines(problem: Problem) -> Iterator[Problem]:
    """The dense problems a problem consists of, itself unless it is ragged.

    They have positions and sizes, but no values: nothing is gathered to look at them.
    """
    if not is_ragged(problem):
        yield problem
        return
    p = problem
    for queries, keys in _groups(p):
        query, key, value = (
            torch.empty(selection.shape(x), dtype=x.dtype, device="meta")
            for selection, x in ((queries, p.query), (keys, p.key), (keys, p.value))
        )
        yield replace(_placed(p, queries, keys), query=query, key=key, value=value)


def _gathered(p: Problem, queries: Selection, keys: Selection) -> Problem:
    tensors = {"query": queries.take(p.query), "key": keys.take(p.key), "value": keys.take(p.value)}
    return replace(_placed(p, queries, keys), **tensors)


def _placed(p: Problem, queries: Selection, keys: Selection) -> Problem:
    """The problem with the positions of some of its sequences, and no lengths any more."""
    at_query, at_key, mask = p.query_positions, p.key_positions, p.attention_mask
    return replace(
        p,
        # The default positions begin anew in each sequence, as those of the rows of a batch do.
        query_positions=None if at_query is None else queries.positions(at_query),
        key_positions=None if at_key is None else keys.positions(at_key),
        query_factor=None if p.query_factor is None else queries.positions(p.query_factor),
        attention_mask=None if mask is None else _of_rows(mask, keys),
        key_lengths=None,
        cu_seqlens_query=None,
        cu_seqlens_key=None,
    )


def _of_rows(mask: Tensor, keys: Selection) -> Tensor:
    """Of a mask (1 | batch, 1 | heads, 1 | query, key) some rows' own keys."""
    return keys.positions(mask.movedim(0, -2)).movedim(-2, 0)


def _groups(problem: Problem) -> Iterator[tuple[Selection, Selection]]:
    """The queries and keys of each dense problem; sequences without queries are in none."""
    return _packed(problem) if problem.cu_seqlens_query is not None else _by_row(problem)


def _packed(p: Problem) -> Iterator[tuple[Selection, Selection]]:
    assert p.cu_seqlens_query is not None  # a packed problem has both
    assert p.cu_seqlens_key is not None
    cu_query, cu_key = p.cu_seqlens_query.tolist(), p.cu_seqlens_key.tolist()
    shifts = _shifts(p, cu_query[:-1], cu_key[:-1])
    alike: dict[Any, list[tuple[int, int]]] = {}
    for queries, keys, shift in zip(pairwise(cu_query), pairwise(cu_key), shifts, strict=True):
        lengths = queries[1] - queries[0], keys[1] - keys[0]
        if lengths[0]:
            alike.setdefault((*lengths, shift), []).append((queries[0], keys[0]))
    for (queries, keys, _), starts in alike.items():
        step = _at_once(p, max(queries, keys))
        for first in range(0, len(starts), step):
            at_query, at_key = zip(*starts[first : first + step], strict=True)
            yield (
                _Tokens(at_query, queries, p.query.device),
                _Tokens(at_key, keys, p.query.device),
            )


def _by_row(p: Problem) -> Iterator[tuple[Selection, Selection]]:
    assert p.key_lengths is not None
    batch, queries, keys = p.query.shape[0], p.query.shape[2], p.key.shape[2]
    if queries == 0:
        return
    lengths = [min(max(n, 0), keys) for n in p.key_lengths.tolist()]
    alike: dict[Any, list[int]] = {}
    rows = zip(range(batch), lengths, _shifts(p, [0] * batch, [0] * batch), strict=True)
    for row, length, shift in rows:
        alike.setdefault((length, shift), []).append(row)
    for (length, _), group in alike.items():
        # Neighbours are a view, however many they are.
        step = len(group) if _follow(group, 1) else _at_once(p, max(queries, length))
        for first in range(0, len(group), step):
            some = group[first : first + step]
            yield _Rows(some, queries, p.query.device), _Rows(some, length, p.query.device)


def _shifts(p: Problem, at_query: list[int], at_key: list[int]) -> list[float]:
    """How far each sequence's first query is ahead of its first key, by where the two begin.

    Sequences that share a problem then have the same distances. The default positions are the same
    in all sequences of equal lengths.
    """
    if p.query_positions is None or p.key_positions is None:
        return [0.0] * len(at_query)
    firsts = []
    for positions, at in ((p.query_positions, at_query), (p.key_positions, at_key)):
        if positions.shape[-1] == 0:
            return [0.0] * len(at_query)
        # A sequence without tokens may begin behind the last one.
        index = torch.tensor(at, dtype=torch.int64, device=positions.device)
        index = index.clamp(max=positions.shape[-1] - 1)
        rows = positions.expand(len(at), -1)
        firsts.append(rows.gather(1, index[:, None]))
    return (firsts[0] - firsts[1]).flatten().tolist()


def _at_once(p: Problem, length: int) -> int:
    """How many sequences of a length make up a problem."""
    return max(1, AT_ONCE // (length * p.query.shape[1]))


def _follow(starts: list[int] | tuple[int, ...], length: int) -> bool:
    return all(after - before == length for before, after in pairwise(starts))


class _Tokens:
    """Sequences of a packed batch.

    Args:
        starts: their first tokens.
        length: how many tokens each has.
        device: the tensors'.
    """

    def __init__(self, starts: tuple[int, ...], length: int, device: torch.device) -> None:
        self._sizes = len(starts), length
        self._span: slice | Tensor
        if _follow(starts, length):
            self._span = slice(starts[0], starts[0] + len(starts) * length)
        else:
            within = torch.arange(length, device=device)
            self._span = (torch.tensor(starts, device=device)[:, None] + within).flatten()

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return self._sizes[0], x.shape[1], self._sizes[1], *x.shape[3:]

    def take(self, x: Tensor) -> Tensor:
        x = x[0]
        own = x[:, self._span] if isinstance(self._span, slice) else x.index_select(1, self._span)
        return own.unflatten(1, self._sizes).transpose(0, 1)

    def put(self, target: Tensor, x: Tensor) -> None:
        target, x = target[0], x.transpose(0, 1)
        if isinstance(self._span, slice):
            target[:, self._span].unflatten(1, self._sizes).copy_(x)
        else:
            target.index_copy_(1, self._span, x.flatten(1, 2))

    def positions(self, x: Tensor) -> Tensor:
        return x[..., 0, self._span].unflatten(-1, self._sizes)


class _Rows:
    """The first tokens of some rows of a batch.

    Args:
        rows: which, ascending.
        length: how many tokens of each.
        device: the tensors'.
    """

    def __init__(self, rows: list[int], length: int, device: torch.device) -> None:
        self._count, self._length = len(rows), length
        follow = _follow(rows, 1)
        self._rows = slice(rows[0], rows[-1] + 1) if follow else torch.tensor(rows, device=device)

    def shape(self, x: Tensor) -> tuple[int, ...]:
        return self._count, x.shape[1], self._length, *x.shape[3:]

    def take(self, x: Tensor) -> Tensor:
        return x[:, :, : self._length][self._rows]

    def put(self, target: Tensor, x: Tensor) -> None:
        target[:, :, : self._length][self._rows] = x

    def positions(self, x: Tensor) -> Tensor:
        own = x[..., : self._length]
        return own if x.shape[-2] == 1 else own[..., self._rows, :]
