"""`ropewalk::newton_scan` as a torch operator: schema, fake tensors and autograd.

The backward is an operator of its own; it cannot be differentiated again.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.newton_scan.backend import implementation
from ropewalk.kernels.newton_scan.problem import Gradients, Needs, Options, Problem, Scanned
from ropewalk.kernels.packing import check_numbers


def scanned(problem: Problem, options: Options, backend: str) -> Scanned:
    """Those of the implementation."""
    if problem.cu_seqlens is not None:
        check_numbers("cu_seqlens", problem.cu_seqlens, problem.time)
    with suspended(problem.inputs):
        return implementation(problem.inputs, backend).forward(problem, options)


def gradients(
    problem: Problem, states: Tensor, grad: Tensor, needs: Needs, options: Options, backend: str
) -> Gradients:
    """Those of the implementation."""
    with suspended(problem.inputs):
        module = implementation(problem.inputs, backend)
        return module.backward(problem, states, grad, needs, options)


@torch.library.custom_op("ropewalk::newton_scan", mutates_args=())
def newton_scan_op(
    inputs: Tensor,
    weights: Tensor,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    cell: str,
    algorithm: str,
    window: int | None,
    tolerance: float | None,
    max_iterations: int | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """States, iterations and residuals; see `Problem` and `Options` for the arguments."""
    problem = Problem(inputs, weights, initial, cell, cu_seqlens)
    options = Options(algorithm, window, tolerance, max_iterations)
    states, iterations, residual = scanned(problem, options, backend)
    return states, iterations, residual


@newton_scan_op.register_fake
def _(
    inputs: Tensor,
    weights: Tensor,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    cell: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    p = Problem(inputs, weights, initial, cell, cu_seqlens)
    chains = (p.sequences, p.channels)
    return (
        inputs.new_empty((*inputs.shape[:2], *p.state_shape)),
        inputs.new_empty(chains, dtype=torch.int32),
        inputs.new_empty(chains, dtype=torch.float32),
    )


@torch.library.custom_op("ropewalk::newton_scan_backward", mutates_args=())
def newton_scan_backward_op(
    inputs: Tensor,
    weights: Tensor,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    grad: Tensor,
    needs: list[bool],
    cell: str,
    algorithm: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of inputs, weights and initial states, empty where `needs` has none."""
    problem = Problem(inputs, weights, initial, cell, cu_seqlens)
    found = gradients(problem, states, grad, Needs(*needs), Options(algorithm), backend)
    of_inputs, of_weights, of_initial = (
        states.new_empty(0) if x is None else x.contiguous() for x in found
    )
    return of_inputs, of_weights, of_initial


@newton_scan_backward_op.register_fake
def _(
    inputs: Tensor,
    weights: Tensor,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    grad: Tensor,
    needs: list[bool],
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    of = (inputs, weights, states if initial is None else initial)
    of_inputs, of_weights, of_initial = (
        x.new_empty(x.shape) if needed else states.new_empty(0)
        for x, needed in zip(of, needs, strict=True)
    )
    return of_inputs, of_weights, of_initial


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights, initial, cu_seqlens, cell, algorithm, _, _, _, backend = inputs
    ctx.save_for_backward(x, weights, initial, cu_seqlens, output[0])
    ctx.constants = (cell, algorithm, backend)
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    needs = [bool(needed) for needed in ctx.needs_input_grad[:3]]
    found = newton_scan_backward_op(*ctx.saved_tensors, grad, needs, *ctx.constants)
    wanted = (x if needed else None for x, needed in zip(found, needs, strict=True))
    return *wanted, *(None,) * 7


newton_scan_op.register_autograd(_backward, setup_context=_save)
