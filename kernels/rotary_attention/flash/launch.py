"""The same result from attention that exists, one part for each branch, merged by logsumexp.

    o_i = Σ_b e^{lse_b,i − lse_i} attention_b(R^{q_b(i)} q_i, …),   lse_i = log Σ_b e^{lse_b,i}

Near attention is a sliding window over rotated queries and keys; far attention is causal attention
of shifted slices (parts.py). On CPUs this is the fast path; on GPUs it runs what everybody has
(library.py). Backward, each part runs on the merged output and logsumexp, which makes its gradients
exactly its share.

It needs queries and keys that lie one position apart, and takes neither masks nor, on CPUs, a cap
on the scores; `unsupported` says so. Packed sequences and rows of different lengths are problems of
their own.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention import reference, varlen
from ropewalk.kernels.rotary_attention.flash import cpu, cuda
from ropewalk.kernels.rotary_attention.flash.library import Library, Shape
from ropewalk.kernels.rotary_attention.flash.merge import Merged
from ropewalk.kernels.rotary_attention.flash.parts import Part, parts
from ropewalk.kernels.rotary_attention.flash.turning import turn
from ropewalk.kernels.rotary_attention.positions import index_shift
from ropewalk.kernels.rotary_attention.problem import Problem


def unsupported(problem: Problem) -> str | None:
    """Why this backend cannot answer the problem, or None."""
    p = problem
    if p.attention_mask is not None:
        return "it takes no attention_mask; say it by positions, key_lengths or cu_seqlens_query"
    if p.value.shape[-1] != p.query.shape[-1]:
        return (
            f"its attention wants values as wide as queries, got value_dim {p.value.shape[-1]} "
            f"and head_dim {p.query.shape[-1]}"
        )
    if p.sliding_window is not None and not (p.causal and p.unit == 1):
        return (
            f"it takes a sliding_window only with causal=True and rules that count single tokens, "
            f"got causal={p.causal} and a unit of {p.unit}"
        )
    if p.scale <= 0:
        return f"its attention wants a positive scale, got {p.scale}"
    library = _library(p)
    if isinstance(library, str):
        return library
    if p.causal and not p.by_index and any(_shift(one) is None for one in varlen.outlines(p)):
        return (
            "its attention wants positions that count up by one, with each query at a key or "
            "before the first; leave positions out, or pass such ones"
        )
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, value_dim) and logsumexp (batch, heads, query)."""
    p = problem
    if varlen.is_ragged(p):
        return varlen.forward(forward, p)
    library = _connected(p)
    output = p.query.new_empty(p.query.shape, dtype=p.dtype)
    logsumexp = p.query.new_empty(p.query.shape[:3], dtype=p.dtype)
    merged = Merged(_by_row(output, p), _by_row(logsumexp, p))
    for branch in _branches(p, library):
        for part in branch.parts:
            tensors, start = branch.tensors(part), part.queries.start
            for share in library.attend(*tensors, _shape(p, part)):
                rows = slice(start + share.queries.start, start + share.queries.stop)
                merged.add(share.groups, rows, share.output, share.logsumexp)
    if p.sinks is not None:
        merged.add_sinks(p.sinks.to(p.dtype).view(p.key.shape[1], -1, 1).repeat(len(p.key), 1, 1))
    return output.to(p.query.dtype), logsumexp


def backward(
    problem: Problem, output: Tensor, logsumexp: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sinks (empty without sinks), in their dtypes."""
    p = problem
    if bool(grad_lse.any()):
        # A library's Δ is ⟨do, o⟩; a gradient of the logsumexp would have to be taken off it.
        return reference.backward(p, output, logsumexp, grad_output, grad_lse)
    if varlen.is_ragged(p):
        return varlen.backward(backward, p, output, logsumexp, grad_output, grad_lse)
    library = _connected(p)
    dtype = library.dtype(p.query)
    whole = tuple(_by_row(x, p) for x in (output.to(dtype), logsumexp, grad_output.to(dtype)))
    of_query, of_key, of_value = (
        x.new_zeros(x.shape, dtype=p.dtype) for x in (p.query, p.key, p.value)
    )
    for branch in _branches(p, library):
        query, key = (x.new_zeros(x.shape, dtype=p.dtype) for x in (branch.query, branch.key))
        for part in branch.parts:
            queries, keys = branch.within(part)
            results = tuple(x[:, :, part.queries] for x in whole)
            gradients = (query[:, :, queries], key[:, keys], of_value.flatten(0, 1)[:, part.keys])
            library.backward(branch.tensors(part), results, gradients, _shape(p, part))
        for total, own, span, angles in (
            (of_query, query, branch.queries, branch.query_angles),
            (of_key, key, branch.keys, branch.key_angles),
        ):
            target = total[:, :, span]
            target += turn(p, own.view(target.shape), angles, back=True)
    if p.query_factor is not None:
        of_query *= p.query_factor[:, None, :, None]
    of_sinks = logsumexp.new_empty(0)
    if p.sinks is not None:
        delta = (output.to(p.dtype) * grad_output).sum(-1)
        # −∞ − −∞ where there is no key and the sink is −∞ too; its weight is 0.
        lse = logsumexp.masked_fill(logsumexp == -torch.inf, 0.0)
        weights = torch.exp(p.sinks.to(p.dtype)[:, None] - lse)
        of_sinks = -(weights * delta).sum((0, 2)).to(p.sinks.dtype)
    return of_query.to(p.query.dtype), of_key.to(p.key.dtype), of_value.to(p.value.dtype), of_sinks


class _Branch:
    """The parts of a branch, with its rotated queries and keys."""

    def __init__(self, problem: Problem, dtype: torch.dtype, own: list[Part]) -> None:
        p, branch = problem, own[0].branch
        self.parts = own
        self.queries, self.keys = _hull([x.queries for x in own]), _hull([x.keys for x in own])
        self.query_angles = p.query_angles[branch][:, self.queries]
        self.key_angles = p.key_angles[branch][:, self.keys]
        query = p.query[:, :, self.queries].to(p.dtype)
        if p.query_factor is not None:
            query = query * p.query_factor[:, None, self.queries, None]
        key = p.key[:, :, self.keys].to(p.dtype)
        self.query = _by_row(turn(p, query, self.query_angles).to(dtype), p)
        self.key = _by_row(turn(p, key, self.key_angles).to(dtype), p)[:, 0]
        self.value = _by_row(p.value.to(dtype), p)[:, 0]

    def within(self, part: Part) -> tuple[slice, slice]:
        """A part's queries and keys among the branch's."""
        return _shifted(part.queries, self.queries.start), _shifted(part.keys, self.keys.start)

    def tensors(self, part: Part) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of a part."""
        queries, keys = self.within(part)
        return self.query[:, :, queries], self.key[:, keys], self.value[:, part.keys]


def _shift(problem: Problem) -> int | None:
    """See `index_shift`; of a batch without rows any number will do."""
    return index_shift(problem) if len(problem.query) > 0 else 0


def _branches(problem: Problem, library: Library) -> Iterator[_Branch]:
    shift = _shift(problem) if problem.causal else 0
    assert shift is not None  # `unsupported` has refused other positions
    dtype = library.dtype(problem.query)
    for _, own in groupby(parts(problem, shift), key=lambda part: part.branch):
        yield _Branch(problem, dtype, list(own))


def _by_row(x: Tensor, problem: Problem) -> Tensor:
    """(batch, heads, sequence, …) → (batch · kv_heads, groups, sequence, …); see `library`."""
    batch, kv_heads = problem.key.shape[:2]
    if x.ndim == 4 and x.stride(-1) != 1:
        x = x.contiguous()
    return x.reshape(batch * kv_heads, x.shape[1] // kv_heads, *x.shape[2:])


def _shape(problem: Problem, part: Part) -> Shape:
    p = problem
    return Shape(part.causal, part.window, p.scale, p.softcap, p.deterministic)


def _hull(slices: list[slice]) -> slice:
    return slice(min(x.start for x in slices), max(x.stop for x in slices))


def _shifted(x: slice, start: int) -> slice:
    return slice(x.start - start, x.stop - start)


def _library(problem: Problem) -> Library | str:
    """The library for the problem's device, or why there is none."""
    device = problem.query.device
    if device.type not in ("cpu", "cuda"):
        return f"no library is connected for tensors on {device}"
    library = cpu if device.type == "cpu" else cuda.library()
    reason = library.unsupported(problem)
    return library if reason is None else reason


def _connected(problem: Problem) -> Library:
    library = _library(problem)
    if isinstance(library, str):
        raise ValueError(f"backend 'flash' cannot run: {library}")
    return library
