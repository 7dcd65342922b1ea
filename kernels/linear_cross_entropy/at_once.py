"""`ropewalk::vocabulary_loss`: one number and its gradients in the same pass, on a CPU.

Where a loss is one number, the gradient of every statistic is known before the backward begins, but
for a common factor. So while a chunk of tokens has its logits in memory their gradient is formed
and multiplied at once: three products instead of four. What it costs is that the gradients live
from the forward pass on and that the common factor, where it is not 1, is multiplied onto a copy of
them. Both are as large as the weights, so it is done for heads whose weights are less than the
workspace, and whose logits fit there for enough tokens to keep a product busy.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.linear_cross_entropy import reference
from ropewalk.kernels.linear_cross_entropy.chunks import WORKSPACE
from ropewalk.kernels.linear_cross_entropy.problem import Needs, Problem, statistics_dtype
from ropewalk.kernels.linear_cross_entropy.reduction import Factors
from ropewalk.kernels.linear_cross_entropy.reference.whole_rows import LEAST_TOKENS, rows_at_once


def at_once(problem: Problem, backend: str) -> bool:
    """Whether it is worth it here, and possible."""
    leaves = (problem.hidden, problem.weight, problem.bias)
    return (
        backend in ("auto", "reference")
        and problem.hidden.device.type == "cpu"
        and problem.hidden.dtype == statistics_dtype(problem.hidden.dtype)
        and problem.exact
        and torch.is_grad_enabled()
        and any(leaf is not None and leaf.requires_grad for leaf in leaves)
        and problem.vocabulary * problem.dim * problem.hidden.dtype.itemsize <= WORKSPACE
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
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # zeros for them would be as large as the weights
    ctx.needs = inputs[-1]


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # asked for a graph of the backward
        raise RuntimeError(
            "linear_cross_entropy: expected a backward without create_graph=True, because its "
            "gradients are not differentiable; take F.cross_entropy of the logits for that"
        )
    # A factor of 1, which `loss.backward()` gives, needs no copy. Not asked of a tracer's tensors.
    as_they_are = type(upstream) is Tensor and upstream.item() == 1
    gradients = (
        (gradient if as_they_are else gradient * upstream) if needed else None
        for gradient, needed in zip(ctx.saved_tensors, ctx.needs, strict=True)
    )
    return (*gradients, *(None,) * 8)


vocabulary_loss_op.register_autograd(_backward, setup_context=_save)
