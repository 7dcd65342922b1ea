"""`ropewalk::vocabulary_loss`: one number and its gradients in the same pass, on a CPU.

Where a loss is one number, the gradient of every statistic is known before the backward begins, but
for a common factor. So while a chunk of tokens has its logits in memory their gradient is formed
and multiplied at once: three products instead of four. What it costs is that the gradients live
from the forward pass on and that the common factor is multiplied onto a copy of them. So it is done
where that copy fits the workspace, and the logits of enough tokens to keep a product busy.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.linear_cross_entropy import reference
from ropewalk.kernels.linear_cross_entropy.chunks import WORKSPACE
from ropewalk.kernels.linear_cross_entropy.problem import Needs, Problem
from ropewalk.kernels.linear_cross_entropy.reduction import Factors
from ropewalk.kernels.linear_cross_entropy.reference.whole_rows import LEAST_TOKENS, rows_at_once


def at_once(problem: Problem, backend: str) -> bool:
    """Whether it is worth it here, and possible."""
    leaves = (problem.hidden, problem.weight, problem.bias)
    elements = (problem.tokens + problem.vocabulary) * problem.dim
    return (
        backend in ("auto", "reference")
        and problem.hidden.device.type == "cpu"
        and problem.hidden.dtype == statistics_dtype(problem.hidden.dtype)
        and problem.exact
        and torch.is_grad_enabled()
        and any(leaf is not None and leaf.requires_grad for leaf in leaves)
        and elements * problem.hidden.dtype.itemsize <= WORKSPACE
        and rows_at_once(problem) >= LEAST_TOKENS
    )


def loss_at_once(problem: Problem, factors: Factors) -> Tensor:
    """The sum of all tokens' losses, differentiable in hidden, weight and bias."""
    leaves = (problem.hidden, problem.weight, problem.bias)
    total, *_ = vocabulary_loss_op(
        *leaves, problem.targets, problem.sum_weights, *factors, problem.logit_scale,
        problem.softcap, [leaf is not None and leaf.requires_grad for leaf in leaves],
    )  # fmt: skip
    return total


@torch.library.custom_op("ropewalk::vocabulary_loss", mutates_args=())
def vocabulary_loss_op(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    sum_weights: Tensor | None,
    nll: Tensor,
    spread: Tensor | None,
    square: Tensor | None,
    logit_scale: float,
    softcap: float | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, and its gradients with respect to hidden, weight and bias, empty if not needed."""
    problem = Problem(hidden, weight, targets, bias, sum_weights, logit_scale, softcap, True)
    with suspended(hidden):
        total, gradients = reference.loss_and_gradients(
            problem, Factors(nll, spread, square), Needs(*needs)
        )
    hidden_grad, weight_grad, bias_grad = (
        hidden.new_empty(0) if grad is None else grad for grad in gradients
    )
    return total, hidden_grad, weight_grad, bias_grad


@vocabulary_loss_op.register_fake
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    needs = arguments[-1]
    of = (hidden, weight, weight if bias is None else bias)
    hidden_grad, weight_grad, bias_grad = (
        x.new_empty(x.shape if needed else 0) for x, needed in zip(of, needs, strict=True)
    )
    return hidden.new_empty(()), hidden_grad, weight_grad, bias_grad


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros for them would be as large as the weights
    ctx.needs = inputs[-1]


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    leaves, gradients = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    # Never themselves: a graph that is kept needs them once more, as they are.
    scaled = [
        gradient * upstream if needed else None
        for gradient, needed in zip(gradients, ctx.needs, strict=True)
    ]
    if torch.is_grad_enabled():  # asked for a graph of the backward
        scaled = [None if x is None else _OnlyOnce.apply(x, *leaves) for x in scaled]
    return (*scaled, *(None,) * 8)


class _OnlyOnce(torch.autograd.Function):
    """A gradient that depends on the leaves, as nobody knows how."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *leaves: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> None:
        raise RuntimeError(
            "linear_cross_entropy: expected to be differentiated once, got a gradient of its "
            "gradients; take F.cross_entropy of the logits for that"
        )


vocabulary_loss_op.register_autograd(_backward, setup_context=_save)
