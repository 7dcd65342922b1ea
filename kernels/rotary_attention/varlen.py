"""Ragged batches by cutting: each sequence is a dense problem of its own.

    packed: sequence s = queries cu_query[s] … cu_query[s+1] − 1 and the same of the keys
    by row: row b = all its queries and its first key_lengths[b] keys

The slices are views, so nothing is padded or copied, and the result is exactly the dense path's.
Sequences may be empty on either side: queries without keys get zeros and −∞.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ropewalk.kernels.rotary_attention import validation
from ropewalk.kernels.rotary_attention.problem import Problem

Index = tuple[slice, slice, slice]

# Lengths that were found right, with their version and number of tokens: the layers of a model
# share one tensor, and reading it back makes a GPU wait.
_checked = WeakIdKeyDictionary()


def check_lengths(problem: Problem) -> None:
    """Refuses cumulative lengths whose numbers are wrong; not while a CUDA graph is captured."""
    p = problem
    if p.query.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # a graph cannot read numbers back
    for name, cu, x in (
        ("cu_seqlens_query", p.cu_seqlens_query, p.query),
        ("cu_seqlens_key", p.cu_seqlens_key, p.key),
    ):
        if cu is None:
            continue
        known = None if cu.is_inference() else (cu._version, x.shape[2])
        if known is None or _checked.get(cu) != known:
            validation.check_packed_values(name, cu, x.shape[2])
        if known is not None:
            _checked[cu] = known


def is_ragged(problem: Problem) -> bool:
    """Whether sequences are packed, or rows have lengths of their own."""
    return problem.cu_seqlens_query is not None or problem.key_lengths is not None


def forward(dense: Callable[[Problem], Any], problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of all sequences by the dense forward."""
    p = problem
    output = p.query.new_zeros(*p.query.shape[:-1], p.value.shape[-1])
    logsumexp = p.query.new_full(p.query.shape[:-1], -torch.inf, dtype=p.dtype)
    for part, queries, _ in sequences(p):
        output[queries], logsumexp[queries] = dense(part)
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
    for part, queries, keys in sequences(p):
        results = (x[queries] for x in (output, logsumexp, grad_output, grad_lse))
        of_query[queries], of_key[keys], of_value[keys], own = dense(part, *results)
        if p.sinks is not None:
            of_sinks = of_sinks + own
    return of_query, of_key, of_value, of_sinks


def dense(problem: Problem) -> Iterator[Problem]:
    """The dense problems that a problem consists of: itself, unless it is ragged."""
    if is_ragged(problem):
        yield from (part for part, _, _ in sequences(problem))
    else:
        yield problem


def sequences(problem: Problem) -> Iterator[tuple[Problem, Index, Index]]:
    """Each sequence that has queries, as a dense problem, with its queries and keys."""
    cut = _packed if problem.cu_seqlens_query is not None else _by_row
    for queries, keys in cut(problem):
        if queries[2].start < queries[2].stop:
            yield _cut(problem, queries, keys), queries, keys


def _packed(problem: Problem) -> Iterator[tuple[Index, Index]]:
    cu_query, cu_key = problem.cu_seqlens_query, problem.cu_seqlens_key
    assert cu_query is not None  # a packed problem has both
    assert cu_key is not None
    everything = slice(None)
    for queries, keys in zip(pairwise(cu_query.tolist()), pairwise(cu_key.tolist()), strict=True):
        yield (everything, everything, slice(*queries)), (everything, everything, slice(*keys))


def _by_row(problem: Problem) -> Iterator[tuple[Index, Index]]:
    assert problem.key_lengths is not None
    queries, keys = problem.query.shape[2], problem.key.shape[2]
    lengths = [min(max(n, 0), keys) for n in problem.key_lengths.tolist()]
    alike = len(set(lengths)) == 1
    rows = [slice(None)] if alike else [slice(b, b + 1) for b in range(len(lengths))]
    for row, length in zip(rows, lengths, strict=False):
        yield (row, slice(None), slice(0, queries)), (row, slice(None), slice(0, length))


def _cut(p: Problem, queries: Index, keys: Index) -> Problem:
    def given(x: Tensor | None, index: Index) -> Tensor | None:
        """Of (1 | batch, sequence); default positions are the sequence's own by themselves."""
        return None if x is None else x[index[0] if len(x) > 1 else slice(None), index[2]]

    return replace(
        p,
        query=p.query[queries],
        key=p.key[keys],
        value=p.value[keys],
        query_positions=given(p.query_positions, queries),
        key_positions=given(p.key_positions, keys),
        query_factor=given(p.query_factor, queries),
        key_lengths=None,
        cu_seqlens_query=None,
        cu_seqlens_key=None,
    )
