"""Launches: from a problem's tensors to flat memory, and what a loop wrote back to tensors."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.compiled.memory import Flat, compute_dtype, flat
from ropewalk.kernels.compiled.sequences import Sequences
from ropewalk.kernels.compiled.threads import Plan, plan
from ropewalk.kernels.linear_scan.numba import block2, dense, diagonal
from ropewalk.kernels.linear_scan.problem import Gradients, Needs, Problem

LOOPS: dict[str, ModuleType] = {"diagonal": diagonal, "block2": block2, "dense": dense}
NANOSECONDS = {"diagonal": 1.0, "block2": 4.0, "dense": 0.3}
"""Of a step and channel, of the dense form of an entry of A: how much a thread is worth."""
MOST_CHANNELS = 1024
"""Of a block: its rows stay in the first cache, and memory is read in long pieces."""
DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
)


def unsupported(x: Tensor) -> str | None:
    """Why these loops cannot take a tensor, or None."""
    if x.device.type != "cpu":
        return f"expected tensors on a CPU, got {x.device}; use .cpu() or another backend"
    if x.dtype not in DTYPES:
        return f"expected floating-point or complex numbers, got {x.dtype}; use .float()"
    return None


def forward(problem: Problem) -> Tensor:
    """All states, of b's shape and dtype; half precision is computed in float32."""
    dtype = compute_dtype(problem.b.dtype)
    states = torch.empty(problem.b.shape, dtype=dtype, device="cpu")
    if states.numel() == 0:
        return states.to(problem.b.dtype)
    sequences = _sequences(problem)
    out = flat(states, dtype)
    given = (
        *_walked(flat(problem.a, dtype), sequences, problem.structure == "block2"),
        *_walked(flat(problem.b, dtype), sequences),
        out.memory,
        *sequences.walk(*out.strides[:2]),
        _initial(problem, dtype),
        sequences.lengths,
    )
    _run(LOOPS[problem.structure].forward, problem, sequences, given)
    return states.to(problem.b.dtype)


def backward(problem: Problem, states: Tensor, grad: Tensor, needs: Needs) -> Gradients:
    """The gradients that are wanted, in one pass over a, the states and their gradient.

    Args:
        problem: as in the forward.
        states: what it gave.
        grad: of the states, any strides.
        needs: which.
    """
    dtype = compute_dtype(problem.b.dtype)
    b_grad = torch.empty(problem.b.shape, dtype=dtype, device="cpu")
    a_grad = torch.empty(problem.a.shape if needs.a else (1,), dtype=dtype, device="cpu")
    carry = torch.zeros((problem.sequences, *problem.b.shape[2:]), dtype=dtype, device="cpu")
    if b_grad.numel() > 0:
        sequences = _sequences(problem)
        out = flat(states, dtype)
        given = (
            *_walked(flat(problem.a, dtype), sequences, problem.structure == "block2"),
            *_walked(flat(grad, dtype), sequences),
            out.memory,
            *sequences.walk(*out.strides[:2]),
            _initial(problem, dtype),
            a_grad.view(-1).numpy(),
            needs.a,
            b_grad.view(-1).numpy(),
            carry.view(-1).numpy(),
            sequences.lengths,
        )
        _run(LOOPS[problem.structure].backward, problem, sequences, given)
    wanted = zip(needs, (a_grad, b_grad, carry), strict=True)
    return Gradients(*(g.to(problem.b.dtype) if needed else None for needed, g in wanted))


def _sequences(problem: Problem) -> Sequences:
    return Sequences.of(problem.batch, problem.time, problem.cu_seqlens, problem.reverse)


def _walked(x: Flat, sequences: Sequences, matrix: bool = False) -> tuple[Any, ...]:
    """Memory, where sequences begin in it, a step, and what lies within a step, if anything."""
    within = x.strides[2:]
    begins, step = sequences.walk(*x.strides[:2])
    return (x.memory, begins, step, *([within] if matrix else within))


def _initial(problem: Problem, dtype: torch.dtype) -> Any:
    """(sequences · …,), without gaps."""
    if problem.initial is None:
        return (
            torch.zeros((problem.sequences, *problem.b.shape[2:]), dtype=dtype, device="cpu")
            .view(-1)
            .numpy()
        )
    given = problem.initial.detach().resolve_conj().resolve_neg()
    return given.to(dtype).contiguous().view(-1).numpy()


def _run(loop: Any, problem: Problem, sequences: Sequences, given: tuple[Any, ...]) -> None:
    """The loop over all sequences, by as many threads as are worth it."""
    nanoseconds, channels = NANOSECONDS[problem.structure], problem.channels
    if problem.structure == "dense":
        shares = plan(sequences.lengths, 1, nanoseconds * channels**2, 1)
        shares.run(lambda _, first, end: loop(*given, channels, first, end))
        return
    shares: Plan = plan(sequences.lengths, channels, nanoseconds, MOST_CHANNELS)
    shares.run(lambda _, first, end: loop(*given, channels, shares.width, first, end))
