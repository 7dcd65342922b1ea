"""Forward and backward of a problem, see `ropewalk.kernels.newton_scan.problem`."""

import torch
from torch import Tensor

from ropewalk.kernels import ragged
from ropewalk.kernels.newton_scan.problem import Gradients, Needs, Options, Problem, Scanned
from ropewalk.kernels.newton_scan.reference.adjoint import adjoint
from ropewalk.kernels.newton_scan.reference.newton import newton
from ropewalk.kernels.newton_scan.reference.sequential import sequential

WIDE = {"cpu": 16, "cuda": 2**14}
"""Chains from which taking steps in turn costs less than iterating on all of them."""
LONG = {"cpu": 4096, "cuda": 0}
"""Steps below which it does so too, however few chains there are."""


def forward(problem: Problem, options: Options) -> Scanned:
    """States, iterations and residuals."""
    p = problem
    x, w, initial = _widened(p)
    if p.cu_seqlens is None:
        states, iterations, residual = _solved(p, x, w, initial, options)
        return Scanned(states.to(p.inputs.dtype), iterations, residual)
    states = p.inputs.new_empty(1, p.time, *p.state_shape)
    iterations = torch.zeros(p.sequences, p.channels, dtype=torch.int32, device=x.device)
    residual = torch.zeros(p.sequences, p.channels, dtype=torch.float32, device=x.device)
    for numbers, places in ragged.groups(p.cu_seqlens):
        own = ragged.take(x, places, at_end=False)
        lengths = torch.tensor([b - a for a, b in places], device=x.device)
        own_states, iterations[numbers], residual[numbers] = _solved(
            p, own, w, initial[numbers], options, lengths
        )
        ragged.put(states, own_states, places, at_end=False)
    return Scanned(states, iterations, residual)


def backward(
    problem: Problem, states: Tensor, grad: Tensor, needs: Needs, options: Options
) -> Gradients:
    """Gradients in the dtypes of what they belong to."""
    p = problem
    x, w, initial = _widened(p)
    states, grad = states.to(x.dtype), grad.to(x.dtype)
    if p.cu_seqlens is None:
        of_x, of_w, of_initial = adjoint(p.formulas, x, w, initial, states, grad)
    else:
        of_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        of_w, of_initial = torch.zeros_like(w), torch.zeros_like(initial)
        for numbers, places in ragged.groups(p.cu_seqlens):
            own_x, own_states, own_grad = (
                ragged.take(t, places, at_end=False) for t in (x, states, grad)
            )
            of_own_x, of_own_w, of_initial[numbers] = adjoint(
                p.formulas, own_x, w, initial[numbers], own_states, own_grad
            )
            ragged.put(of_x, of_own_x, places, at_end=False)
            of_w += of_own_w
    return Gradients(
        of_x.to(p.inputs.dtype) if needs.inputs else None,
        of_w.to(p.weights.dtype) if needs.weights else None,
        of_initial.to(p.inputs.dtype if p.initial is None else p.initial.dtype)
        if needs.initial
        else None,
    )


def _solved(
    p: Problem,
    x: Tensor,
    w: Tensor,
    initial: Tensor,
    options: Options,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    algorithm = options.algorithm
    if algorithm == "auto":
        chains = x.shape[0] * p.channels
        kind = "cpu" if x.device.type == "cpu" else "cuda"
        few = chains < WIDE[kind] and x.shape[1] >= LONG[kind]
        algorithm = "newton" if few else "sequential"
    if algorithm == "newton":
        return newton(p.formulas, x, w, initial, options, lengths)
    none = torch.zeros(x.shape[0], p.channels, dtype=torch.float32, device=x.device)
    return sequential(p.formulas, x, w, initial), none.int(), none


def _widened(p: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, weights and initial states in the dtype of calculations."""
    x, w = p.inputs.to(p.dtype), p.weights.to(p.dtype)
    if p.initial is None:
        return x, w, x.new_zeros(p.sequences, *p.state_shape)
    return x, w, p.initial.to(p.dtype)
