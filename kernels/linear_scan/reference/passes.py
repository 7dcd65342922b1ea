"""Forward and backward of a problem, see `ropewalk.kernels.linear_scan.problem`."""

import torch
from torch import Tensor

from ropewalk.kernels import ragged
from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.linear_scan.problem import Gradients, Needs, Problem
from ropewalk.kernels.linear_scan.reference.adjoint import adjoint
from ropewalk.kernels.linear_scan.reference.chunks import scan


def forward(problem: Problem) -> Tensor:
    """States, contiguous, in the dtype of b."""
    p = problem
    a, b, initial = _widened(p)
    if p.cu_seqlens is None:
        return scan(p.structure, a, b, initial, reverse=p.reverse).to(p.b.dtype)
    states = torch.empty_like(p.b, memory_format=torch.contiguous_format)
    for numbers, places in ragged.groups(p.cu_seqlens):
        own_a, own_b = (ragged.take(x, places, at_end=p.reverse) for x in (a, b))
        found = scan(p.structure, own_a, own_b, initial[numbers], reverse=p.reverse)
        ragged.put(states, found, places, at_end=p.reverse)
    return states


def backward(problem: Problem, states: Tensor, grad: Tensor, needs: Needs) -> Gradients:
    """Gradients in the dtypes of what they belong to."""
    p = problem
    a, _, initial = _widened(p)
    dtype = a.dtype
    if p.cu_seqlens is None:
        of_a, of_b, of_initial = adjoint(
            p.structure, a, states.to(dtype), initial, grad.to(dtype),
            reverse=p.reverse, needs_a=needs.a,
        )  # fmt: skip
    else:
        of_a = torch.empty(a.shape, dtype=dtype, device=a.device) if needs.a else None
        of_b = torch.empty(p.b.shape, dtype=dtype, device=a.device)
        of_initial = torch.zeros_like(initial)
        for numbers, places in ragged.groups(p.cu_seqlens):
            own_a, own_states, own_grad = (
                ragged.take(x.to(dtype), places, at_end=p.reverse) for x in (a, states, grad)
            )
            of_own_a, of_own_b, of_own_initial = adjoint(
                p.structure, own_a, own_states, initial[numbers], own_grad,
                reverse=p.reverse, needs_a=needs.a,
            )  # fmt: skip
            ragged.put(of_b, of_own_b, places, at_end=p.reverse)
            of_initial[numbers] = of_own_initial
            if of_a is not None and of_own_a is not None:
                ragged.put(of_a, of_own_a, places, at_end=p.reverse)
    return Gradients(
        None if of_a is None else of_a.to(p.a.dtype),
        of_b.to(p.b.dtype) if needs.b else None,
        of_initial.to(p.b.dtype) if needs.initial else None,
    )


def _widened(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and the initial states in the dtype of sums."""
    dtype = wide(p.b.dtype)
    if p.initial is None:
        shape = (p.sequences, *p.b.shape[2:])
        return p.a.to(dtype), p.b.to(dtype), p.b.new_zeros(shape, dtype=dtype)
    return p.a.to(dtype), p.b.to(dtype), p.initial.to(dtype)
