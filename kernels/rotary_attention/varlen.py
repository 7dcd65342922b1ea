"""Packed sequences by cutting: each sequence is a dense problem of its own.

    sequence s = queries cu_query[s] … cu_query[s+1] − 1 and keys cu_key[s] … cu_key[s+1] − 1

The slices are views, so nothing is padded or copied, and the result is exactly the dense path's.
Sequences may be empty on either side: queries without keys get zeros and −∞.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.problem import Problem


def forward(dense: Callable[[Problem], Any], problem: Problem) -> tuple[Tensor, Tensor]:
    """Output and logsumexp of all sequences by the dense forward."""
    p = problem
    output = p.query.new_zeros(*p.query.shape[:-1], p.value.shape[-1])
    logsumexp = p.query.new_full(p.query.shape[:-1], -torch.inf, dtype=p.dtype)
    for part, queries, _ in sequences(p):
        output[:, :, queries], logsumexp[:, :, queries] = dense(part)
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
        rows = (x[:, :, queries] for x in (output, logsumexp, grad_output, grad_lse))
        of_query[:, :, queries], of_key[:, :, keys], of_value[:, :, keys], own = dense(part, *rows)
        if p.sinks is not None:
            of_sinks = of_sinks + own
    return of_query, of_key, of_value, of_sinks


def sequences(problem: Problem) -> Iterator[tuple[Problem, slice, slice]]:
    """Each sequence that has queries, as a dense problem, with its queries and keys."""
    cu_query, cu_key = problem.cu_seqlens_query, problem.cu_seqlens_key
    assert cu_query is not None  # a packed problem has both
    assert cu_key is not None
    bounds = zip(pairwise(cu_query.tolist()), pairwise(cu_key.tolist()), strict=True)
    for queries, keys in bounds:
        if queries[0] < queries[1]:
            yield _cut(problem, slice(*queries), slice(*keys)), slice(*queries), slice(*keys)


def _cut(p: Problem, queries: slice, keys: slice) -> Problem:
    visibility = p.visibility._replace(
        query_positions=p.visibility.query_positions[:, queries],
        key_positions=p.visibility.key_positions[:, keys],
    )
    return replace(
        p,
        query=p.query[:, :, queries],
        key=p.key[:, :, keys],
        value=p.value[:, :, keys],
        query_angles=p.query_angles[..., queries],
        key_angles=p.key_angles[..., keys],
        query_factor=None if p.query_factor is None else p.query_factor[:, queries],
        visibility=visibility,
        cu_seqlens_query=None,
        cu_seqlens_key=None,
    )
