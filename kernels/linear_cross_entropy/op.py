"""`ropewalk::vocabulary_statistics` as a torch operator: schema, fake tensors and autograd.

It gives a few numbers a token from which every loss of this folder is made by ordinary torch, so
that reductions, label smoothing, z-loss and a logsumexp that is used elsewhere are differentiated
by autograd, and each token's upstream gradient is honoured. The backward is an operator of its own;
it cannot be differentiated again.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.linear_cross_entropy.backend import implementation
from ropewalk.kernels.linear_cross_entropy.filter import map_shape
from ropewalk.kernels.linear_cross_entropy.problem import Needs, Problem, Statistics, Upstream


def vocabulary_statistics(problem: Problem, backend: str) -> Statistics:
    """`Statistics` of a problem, differentiable in hidden, weight and bias."""
    logsumexp, target_logit, logit_sum, _ = vocabulary_statistics_op(
        problem.hidden, problem.weight, problem.targets, problem.bias, problem.sum_weights,
        problem.logit_scale, problem.softcap, problem.exact, backend,
    )  # fmt: skip
    summed = None if problem.sum_weights is None else logit_sum
    return Statistics(logsumexp, target_logit, summed, None)


@torch.library.custom_op("ropewalk::vocabulary_statistics", mutates_args=())
def vocabulary_statistics_op(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    sum_weights: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    exact: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fields of `Statistics`, empty where they are none; see `Problem` for the arguments."""
    problem = Problem(
        hidden, weight, targets, bias, sum_weights, logit_scale, softcap, exact
    )  # fmt: skip
    with suspended(hidden):
        found = implementation(hidden, backend).statistics(problem)
    none = found.logsumexp.new_empty(0)
    return (
        found.logsumexp,
        found.target_logit,
        none if found.logit_sum is None else found.logit_sum,
        none.to(torch.uint8) if found.live is None else found.live,
    )


@vocabulary_statistics_op.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    sum_weights: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    exact: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens, dtype = hidden.shape[0], statistics_dtype(hidden.dtype)
    live_shape = (0,) if exact else map_shape(tokens, weight.shape[0])
    return (
        hidden.new_empty(tokens, dtype=dtype),
        hidden.new_empty(tokens, dtype=dtype),
        hidden.new_empty(0 if sum_weights is None else tokens, dtype=dtype),
        hidden.new_empty(live_shape, dtype=torch.uint8),
    )


@torch.library.custom_op("ropewalk::vocabulary_gradients", mutates_args=())
def vocabulary_gradients_op(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    sum_weights: Tensor | None,
    logsumexp: Tensor,
    live: Tensor,
    logsumexp_grad: Tensor,
    target_logit_grad: Tensor,
    logit_sum_grad: Tensor,
    needs: list[bool],
    logit_scale: float,
    softcap: float | None,
    exact: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias, empty where `needs` does not ask for them."""
    problem = Problem(
        hidden, weight, targets, bias, sum_weights, logit_scale, softcap, exact
    )  # fmt: skip
    summed = None if sum_weights is None else logit_sum_grad
    with suspended(hidden):
        found = implementation(hidden, backend).gradients(
            problem,
            logsumexp,
            None if exact else live,
            Upstream(logsumexp_grad, target_logit_grad, summed),
            Needs(*needs),
        )
    hidden_grad, weight_grad, bias_grad = (
        hidden.new_empty(0) if grad is None else grad for grad in found
    )
    return hidden_grad, weight_grad, bias_grad


@vocabulary_gradients_op.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs = arguments[6]
    of = (hidden, weight, weight if bias is None else bias)
    hidden_grad, weight_grad, bias_grad = (
        x.new_empty(x.shape if needed else 0) for x, needed in zip(of, needs, strict=True)
    )
    return hidden_grad, weight_grad, bias_grad


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, logit_scale, softcap, exact, backend = inputs
    logsumexp, _, _, live = output
    ctx.save_for_backward(*tensors, logsumexp, live)
    ctx.constants = (logit_scale, softcap, exact, backend)


def _backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    hidden, weight, targets, bias, sum_weights, logsumexp, live = ctx.saved_tensors
    needs = [bool(ctx.needs_input_grad[index]) for index in (0, 1, 3)]
    hidden_grad, weight_grad, bias_grad = vocabulary_gradients_op(
        hidden, weight, targets, bias, sum_weights, logsumexp, live, *upstream[:3], needs,
        *ctx.constants,
    )  # fmt: skip
    return (
        hidden_grad if needs[0] else None,
        weight_grad if needs[1] else None,
        None,
        bias_grad if needs[2] else None,
        *(None,) * 5,
    )


vocabulary_statistics_op.register_autograd(_backward, setup_context=_save)
