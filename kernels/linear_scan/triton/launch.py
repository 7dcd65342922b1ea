"""Launches: one pass, or three where time is split among programs."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.launching import run
from ropewalk.kernels.linear_scan.problem import Gradients, Needs, Problem
from ropewalk.kernels.linear_scan.triton.adjoint import adjoint_kernel
from ropewalk.kernels.linear_scan.triton.configurations import (
    Configuration,
    chunks_of,
    configuration,
)
from ropewalk.kernels.linear_scan.triton.layout import (
    coefficient_strides,
    numbers,
    readable,
    state_strides,
    structure_of,
)
from ropewalk.kernels.linear_scan.triton.scan import scan_kernel
from ropewalk.kernels.linear_scan.triton.summary import summary_kernel
from ropewalk.kernels.sizes import ceil_divide

Split = tuple[int, int]
"""Chunks, and steps of each."""


def forward(problem: Problem, split: Split | None = None) -> Tensor:
    """All states; see `ropewalk.kernels.linear_scan.problem`.

    Args:
        problem: the recurrences.
        split: chunks of time and steps of each, for tests and measurements; the table has its own.
    """
    p = problem
    states = p.b.new_empty(p.b.shape)
    if states.numel() == 0 or p.sequences == 0:
        return states
    how = _configuration(p, backward=False)
    split = split or chunks_of(how, p.sequences, p.time, p.channels, p.b.device)
    a, b = readable(p.a), readable(p.b)
    initial = None if p.initial is None else numbers(p.initial.contiguous())
    if split[0] > 1:
        initial = _between(p, a, b, how, split, initial, adjoint=False)
    run(
        scan_kernel,
        (_programs(p, how, split),),
        b,
        a=a,
        b=b,
        initial=initial,
        states=numbers(states),
        **_sequences(p, split, how),
        **coefficient_strides(a),
        **state_strides(b, "b"),
        STRUCTURE=structure_of(p),
        REVERSE=p.reverse,
        INITIAL=initial is not None,
        **how.constants(),
    )
    return states


def backward(
    problem: Problem, states: Tensor, grad: Tensor, needs: Needs, split: Split | None = None
) -> Gradients:
    """The gradients that are wanted; arguments as in `forward`."""
    p = replace(problem, b=grad)
    of_a = p.a.new_empty(p.a.shape) if needs.a else None
    of_b = states.new_empty(states.shape) if needs.b else None
    given = p.initial
    of_initial = given.new_empty(given.shape) if needs.initial and given is not None else None
    if p.sequences == 0 or p.channels == 0:
        return Gradients(of_a, of_b, of_initial)
    if p.time == 0:
        return Gradients(of_a, of_b, None if of_initial is None else of_initial.zero_())
    how = _configuration(p, backward=True)
    split = split or chunks_of(how, p.sequences, p.time, p.channels, grad.device)
    a, v = readable(p.a), readable(grad)
    carries = _between(p, a, v, how, split, None, adjoint=True) if split[0] > 1 else None
    run(
        adjoint_kernel,
        (_programs(p, how, split),),
        v,
        a=a,
        states=numbers(states.contiguous()),
        grad=v,
        initial=None if given is None else numbers(given.contiguous()),
        carries=carries,
        a_grad=None if of_a is None else numbers(of_a),
        b_grad=None if of_b is None else numbers(of_b),
        initial_grad=None if of_initial is None else numbers(of_initial),
        **_sequences(p, split, how),
        **coefficient_strides(a),
        **state_strides(v, "grad"),
        STRUCTURE=structure_of(p),
        BACKWARDS=not p.reverse,
        INITIAL=given is not None,
        CARRIES=carries is not None,
        OF_A=of_a is not None,
        OF_B=of_b is not None,
        OF_INITIAL=of_initial is not None,
        **how.constants(),
    )
    return Gradients(of_a, of_b, of_initial)


def _between(
    p: Problem,
    a: Tensor,
    b: Tensor,
    how: Configuration,
    split: Split,
    initial: Tensor | None,
    *,
    adjoint: bool,
) -> Tensor:
    """float32 (sequences, chunks, state): what each chunk begins with, in the order of the walk."""
    shape = (p.sequences, split[0])
    parts, rows = ((2,), (2, 2)) if p.structure == "block2" else ((), ())
    products = b.new_empty((*shape, *rows, b.shape[-1]), dtype=torch.float32)
    ends = b.new_empty((*shape, *parts, b.shape[-1]), dtype=torch.float32)
    run(
        summary_kernel,
        (_programs(p, how, split),),
        b,
        a=a,
        b=b,
        products=products,
        ends=ends,
        **_sequences(p, split, how),
        **coefficient_strides(a),
        **state_strides(b, "b"),
        STRUCTURE=structure_of(p),
        BACKWARDS=p.reverse != adjoint,
        ADJOINT=adjoint,
        **how.constants(),
    )
    start = torch.zeros_like(ends[:, 0]) if initial is None else initial.to(torch.float32)
    complex_numbers = p.b.is_complex()
    over_chunks = Problem(
        _paired(products) if complex_numbers else products,
        _paired(ends) if complex_numbers else ends,
        _paired(start) if complex_numbers else start,
    )
    after = numbers(forward(over_chunks, (1, split[0])))
    return torch.cat((start[:, None], after[:, :-1]), dim=1)


def _paired(x: Tensor) -> Tensor:
    """The inverse of `numbers`."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _configuration(p: Problem, *, backward: bool) -> Configuration:
    sizes = (p.sequences, p.time, p.channels, p.b.device)
    return configuration(structure_of(p), p.b.dtype, *sizes, backward=backward)


def _programs(p: Problem, how: Configuration, split: Split) -> int:
    return p.sequences * split[0] * ceil_divide(p.channels, how.channels)


def _sequences(p: Problem, split: Split, how: Configuration) -> dict[str, Any]:
    """What all kernels are told about time and channels."""
    return {
        "cu_seqlens": p.cu_seqlens,
        "time": p.time,
        "channels": p.channels * (2 if p.b.is_complex() else 1),
        "blocks": ceil_divide(p.channels, how.channels),
        "chunks": split[0],
        "chunk_steps": split[1],
        "PACKED": p.cu_seqlens is not None,
    }
