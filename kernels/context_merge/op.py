"""`ropewalk::context_merge` as a torch operator: schema, fake tensors and autograd.

The backward is an operator of its own, which computes the rows again in torch; it cannot be
differentiated again.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.context_merge import reference
from ropewalk.kernels.context_merge.backend import implementation
from ropewalk.kernels.context_merge.problem import Problem
from ropewalk.kernels.dtypes import statistics_dtype


@torch.library.custom_op("ropewalk::context_merge", mutates_args=())
def context_merge_op(
    logits: Tensor,
    unconditional: Tensor,
    log_prior: Tensor | None,
    previous: Tensor | None,
    beta: float,
    eta: float,
    top_p: float,
    pooling: str,
    renormalise_entropy: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Merged log-probabilities, chosen contexts, entropies; see `Problem` for the arguments."""
    problem = Problem(
        logits, unconditional, log_prior, previous, beta, eta, top_p, pooling, renormalise_entropy
    )
    with suspended(logits):
        log_probs, chosen, entropies = implementation(logits, backend).merge(problem)
    return log_probs, chosen, entropies.contiguous()  # as the fake tensors are


@context_merge_op.register_fake
def _(logits: Tensor, unconditional: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    questions, contexts, vocabulary = logits.shape
    dtype = statistics_dtype(logits.dtype)
    return (
        logits.new_empty((questions, vocabulary), dtype=dtype),
        logits.new_empty((questions,), dtype=torch.int64),
        logits.new_empty((questions, contexts), dtype=dtype),
    )


@torch.library.custom_op("ropewalk::context_merge_backward", mutates_args=())
def context_merge_backward_op(
    logits: Tensor,
    unconditional: Tensor,
    log_prior: Tensor | None,
    previous: Tensor | None,
    log_probs_grad: Tensor,
    entropies_grad: Tensor,
    beta: float,
    eta: float,
    top_p: float,
    pooling: str,
    renormalise_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of logits, unconditional and log_prior (empty without one)."""
    problem = Problem(
        logits, unconditional, log_prior, previous, beta, eta, top_p, pooling, renormalise_entropy
    )
    with suspended(logits):
        logits_grad, unconditional_grad, prior_grad = reference.gradient(
            problem, log_probs_grad, entropies_grad
        )
    return (
        logits_grad,
        unconditional_grad,
        logits.new_empty(0) if prior_grad is None else prior_grad,
    )


@context_merge_backward_op.register_fake
def _(
    logits: Tensor, unconditional: Tensor, log_prior: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        logits.new_empty(logits.shape),
        unconditional.new_empty(unconditional.shape),
        logits.new_empty(0) if log_prior is None else log_prior.new_empty(log_prior.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, unconditional, log_prior, previous, *constants, _ = inputs
    ctx.save_for_backward(logits, unconditional, log_prior, previous)
    ctx.constants = constants


def _backward(
    ctx: Any, log_probs_grad: Tensor, _: Tensor, entropies_grad: Tensor
) -> tuple[Any, ...]:
    log_prior = ctx.saved_tensors[2]
    logits_grad, unconditional_grad, prior_grad = context_merge_backward_op(
        *ctx.saved_tensors, log_probs_grad, entropies_grad, *ctx.constants
    )
    prior_grad = None if log_prior is None else prior_grad
    return logits_grad, unconditional_grad, prior_grad, *(None,) * 7


context_merge_op.register_autograd(_backward, setup_context=_save)
