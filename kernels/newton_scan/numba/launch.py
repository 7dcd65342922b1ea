"""Launches: from a problem's tensors to flat memory, and what a loop wrote back to tensors."""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ropewalk.kernels.compiled.memory import Flat, flat
from ropewalk.kernels.compiled.sequences import Sequences
from ropewalk.kernels.compiled.threads import Plan, plan
from ropewalk.kernels.newton_scan.numba import gru, lstm, tanh
from ropewalk.kernels.newton_scan.numba.scratch import MOST_CHANNELS
from ropewalk.kernels.newton_scan.problem import Gradients, Needs, Options, Problem, Scanned

LOOPS: dict[str, ModuleType] = {"tanh": tanh, "gru": gru, "lstm": lstm}
NANOSECONDS = {"tanh": 1.0, "gru": 2.0, "lstm": 3.0}
"""Of a step of one channel: how much a thread is worth."""
WINDOW = 64
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def unsupported(x: Tensor) -> str | None:
    """Why these loops cannot take a tensor, or None."""
    if x.device.type != "cpu":
        return f"expected tensors on a CPU, got {x.device}; use .cpu() or another backend"
    if x.dtype not in DTYPES:
        return f"expected floating-point numbers, got {x.dtype}; use .float()"
    return None


def forward(problem: Problem, options: Options) -> Scanned:
    """The states, by one step after another unless Newton's method is asked for."""
    chains = (problem.sequences, problem.channels)
    states = torch.empty(
        (problem.batch, problem.time, *problem.state_shape), dtype=problem.dtype, device="cpu"
    )
    iterations = torch.zeros(chains, dtype=torch.int32, device="cpu")
    residual = torch.zeros(chains, dtype=problem.dtype, device="cpu")
    if states.numel() > 0:
        sequences = _sequences(problem)
        given = (
            *_given(problem, sequences),
            *_walked(flat(states, problem.dtype), sequences)[:3],
            _initial(problem),
        )
        loops = LOOPS[problem.cell]
        if options.algorithm == "newton":
            steps = int(sequences.lengths.max())
            window = max(1, min(steps, WINDOW if options.window is None else options.window))
            given += (
                window,
                options.limit(window),
                options.residual_limit(problem.dtype),
                iterations.view(-1).numpy(),
                residual.view(-1).numpy(),
            )
            # Every step is computed a few times.
            shares, loop = _plan(problem, sequences, 4.0), loops.newton
        else:
            shares, loop = _plan(problem, sequences, 1.0), loops.sequential
        given += (sequences.lengths, problem.channels, shares.width)
        shares.run(lambda _, first, end: loop(*given, first, end))
    return Scanned(states.to(problem.inputs.dtype), iterations, residual.float())


def backward(
    problem: Problem, states: Tensor, grad: Tensor, needs: Needs, options: Options
) -> Gradients:
    """The gradients that are wanted; they do not depend on how the states were found.

    Args:
        problem: as in the forward.
        states: what it gave.
        grad: of the states, any strides.
        needs: which.
        options: of the forward.
    """
    dtype = problem.dtype
    x_grad = torch.empty(problem.inputs.shape, dtype=dtype, device="cpu")
    initial_grad = torch.zeros((problem.sequences, *problem.state_shape), dtype=dtype, device="cpu")
    weights_grad = torch.zeros(problem.weights.shape, dtype=torch.float64, device="cpu")
    if x_grad.numel() > 0:
        sequences = _sequences(problem)
        shares = _plan(problem, sequences, 2.0)
        sums = np.zeros((shares.workers, problem.weights.numel()))
        given = (
            *_given(problem, sequences),
            *_walked(flat(grad, dtype), sequences),
            *_walked(flat(states, dtype), sequences)[:3],
            _initial(problem),
            *_walked(flat(x_grad, dtype), sequences)[:3],
            initial_grad.view(-1).numpy(),
        )
        sizes = (sequences.lengths, problem.channels, shares.width)
        loop = LOOPS[problem.cell].backward
        shares.run(lambda worker, first, end: loop(*given, sums[worker], *sizes, first, end))
        weights_grad = torch.from_numpy(sums.sum(0)).view(problem.weights.shape)
    initial = problem.initial
    return Gradients(
        x_grad.to(problem.inputs.dtype) if needs.inputs else None,
        weights_grad.to(problem.weights.dtype) if needs.weights else None,
        initial_grad.to(initial.dtype) if needs.initial and initial is not None else None,
    )


def _sequences(problem: Problem) -> Sequences:
    return Sequences.of(problem.batch, problem.time, problem.cu_seqlens)


def _plan(problem: Problem, sequences: Sequences, times: float) -> Plan:
    cost = NANOSECONDS[problem.cell] * times
    return plan(sequences.lengths, problem.channels, cost, MOST_CHANNELS)


def _walked(x: Flat, sequences: Sequences) -> tuple[Any, ...]:
    """Memory, where sequences begin in it, a step, and what lies within a step, if anything."""
    return (x.memory, *sequences.walk(*x.strides[:2]), *x.strides[2:])


def _given(problem: Problem, sequences: Sequences) -> tuple[Any, ...]:
    """Inputs and weights."""
    weights = problem.weights.detach().resolve_neg().to(problem.dtype).contiguous().view(-1).numpy()
    return (*_walked(flat(problem.inputs, problem.dtype), sequences), weights)


def _initial(problem: Problem) -> np.ndarray:
    """(sequences · …,), without gaps."""
    if problem.initial is None:
        shape = (problem.sequences, *problem.state_shape)
        return torch.zeros(shape, dtype=problem.dtype, device="cpu").view(-1).numpy()
    return problem.initial.detach().resolve_neg().to(problem.dtype).contiguous().view(-1).numpy()
