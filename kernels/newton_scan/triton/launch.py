"""Launches: windows or steps in turn, and one backward for both."""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.chips import too_old
from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.launching import run
from ropewalk.kernels.linear_scan.triton.layout import readable
from ropewalk.kernels.newton_scan.problem import Gradients, Needs, Options, Problem, Scanned
from ropewalk.kernels.newton_scan.triton.adjoint import adjoint_kernel
from ropewalk.kernels.newton_scan.triton.configurations import Configuration, in_turn, in_windows
from ropewalk.kernels.newton_scan.triton.crossover import choose
from ropewalk.kernels.newton_scan.triton.newton import newton_kernel
from ropewalk.kernels.newton_scan.triton.sequential import sequential_kernel
from ropewalk.kernels.sizes import ceil_divide

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unsupported(x: Tensor) -> str | None:
    """Why the kernels cannot run on inputs like these, or None."""
    if x.dtype not in DTYPES:
        return f"its kernels take float16, bfloat16 and float32, got {x.dtype}"
    return too_old(x)


def forward(problem: Problem, options: Options) -> Scanned:
    """States, iterations and residuals; see `ropewalk.kernels.newton_scan.problem`."""
    p = problem
    states = p.inputs.new_empty(p.batch, p.time, *p.state_shape)
    chains = (p.sequences, p.channels)
    iterations = p.inputs.new_zeros(chains, dtype=torch.int32)
    residual = p.inputs.new_zeros(chains, dtype=torch.float32)
    found = Scanned(states, iterations, residual)
    if states.numel() == 0 or p.sequences == 0:
        return found
    algorithm, how = _plan(p, options)
    given: dict[str, Any] = _arguments(p, how) | {"states": states, **how.constants()}
    if algorithm == "sequential":
        del given["GROUPS"]
        run(sequential_kernel, (_programs(p, how),), p.inputs, **given)
        return found
    window = min(how.tile, options.window or how.tile)
    run(
        newton_kernel,
        (_programs(p, how),),
        p.inputs,
        **given,
        iterations=iterations,
        residual=residual,
        window=window,
        tolerance=float(options.residual_limit(torch.float32)),
        limit=options.limit(window),
    )
    return found


def backward(
    problem: Problem, states: Tensor, grad: Tensor, needs: Needs, options: Options
) -> Gradients:
    """The gradients that are wanted."""
    p, given = problem, problem.initial
    of_inputs = p.inputs.new_empty(p.inputs.shape) if needs.inputs else None
    of_initial = given.new_empty(given.shape) if needs.initial and given is not None else None
    shape = (p.sequences, *p.weights.shape)
    parts = p.inputs.new_empty(shape, dtype=torch.float32) if needs.weights else None
    if states.numel() > 0 and p.sequences > 0:
        _, how = _plan(p, options)
        v = readable(grad)
        run(
            adjoint_kernel,
            (_programs(p, how),),
            v,
            **_arguments(p, how),
            states=states.contiguous(),
            grad=v,
            input_grad=of_inputs,
            weight_parts=parts,
            initial_grad=of_initial,
            grad_batch=v.stride(0),
            grad_time=v.stride(1),
            grad_part=v.stride(2) if v.ndim == 4 else 0,
            OF_INPUTS=of_inputs is not None,
            OF_WEIGHTS=parts is not None,
            OF_INITIAL=of_initial is not None,
            **how.constants(),
        )
    else:
        for empty in (of_initial, parts):
            if empty is not None:
                empty.zero_()
    of_weights = None if parts is None else parts.sum(0).to(p.weights.dtype)
    return Gradients(of_inputs, of_weights, of_initial)


def _plan(p: Problem, options: Options) -> tuple[str, Configuration]:
    """The algorithm, and how it runs."""
    sizes = (p.cell, p.sequences, p.time, p.channels, p.inputs.device)
    windows = in_windows(*sizes, options.window)
    algorithm = options.algorithm
    if algorithm == "auto":
        chains = p.sequences * p.channels
        algorithm = "newton"
        if not interpreted():
            algorithm = choose(p.cell, windows, chains, p.time, p.inputs.device)
    return algorithm, windows if algorithm == "newton" else in_turn(p.cell, p.channels)


def _programs(p: Problem, how: Configuration) -> int:
    return p.sequences * ceil_divide(p.channels, how.channels)


def _arguments(p: Problem, how: Configuration) -> dict[str, Any]:
    """What all kernels are told about inputs, weights and time."""
    x = readable(p.inputs)
    cell = p.formulas
    return {
        "inputs": x,
        "weights": p.weights.contiguous(),
        "initial": None if p.initial is None else p.initial.contiguous(),
        "cu_seqlens": p.cu_seqlens,
        "time": p.time,
        "channels": p.channels,
        "blocks": ceil_divide(p.channels, how.channels),
        "input_batch": x.stride(0),
        "input_time": x.stride(1),
        "input_gate": x.stride(2),
        "CELL": p.cell,
        "STRUCTURE": "real" if cell.parts == 1 else "block2",
        "GATES": len(cell.gates),
        "WEIGHTS": len(cell.rows),
        "PACKED": p.cu_seqlens is not None,
        "INITIAL": p.initial is not None,
    }
