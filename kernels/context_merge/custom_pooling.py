"""The merge with a pooling function of the user's, in ordinary torch, so that autograd sees it."""

from collections.abc import Callable

import torch
from torch import Tensor

from ropewalk.kernels.context_merge import validation
from ropewalk.kernels.context_merge.merge import Merged
from ropewalk.kernels.context_merge.problem import Problem
from ropewalk.kernels.context_merge.reference.cutoff import smallest_kept
from ropewalk.kernels.context_merge.reference.merge import combined, scores_of
from ropewalk.kernels.dtypes import statistics_dtype

PoolingFunction = Callable[[Tensor, Tensor], Tensor]
NOTHING = float("-inf")


def pool_with(
    function: PoolingFunction,
    logits: Tensor,
    unconditional: Tensor,
    *,
    beta: float,
    eta: float,
    top_p: float,
    renormalise_entropy: bool,
    previous: Tensor | None,
) -> Merged:
    """`context_merge` with `function(log_probs, entropies)` in the place of a named pooling.

    Args:
        function: from (*questions, contexts, vocabulary) log-probabilities, −inf where they are
            cut, and (*questions, contexts) entropies to (*questions, vocabulary).
        logits: as in `context_merge`, and so are the other arguments.
        unconditional: the same without any context.
        beta: how far it is taken off.
        eta: what the previous context's entropy is lowered by, for `chosen`.
        top_p: how much of a row is kept.
        renormalise_entropy: whether what is kept is divided by its sum first.
        previous: the context chosen at the step before.

    Raises:
        ValueError: as `context_merge`, or the function gave another shape.
        TypeError: as `context_merge`, or the function gave no tensor.
    """
    validation.check_tensors(logits, unconditional)
    validation.check_options(
        beta=beta, eta=eta, top_p=top_p, pooling="mean", renormalise_entropy=renormalise_entropy
    )
    validation.check_previous(previous, logits)
    kept, entropies = _kept(logits, top_p, renormalise_entropy)
    pooled = function(kept, entropies)
    if not isinstance(pooled, Tensor):
        raise TypeError(f"pooling: expected it to return a tensor, got {type(pooled).__name__}")
    if pooled.shape != unconditional.shape:
        raise ValueError(
            f"pooling: expected it to return {tuple(unconditional.shape)}, one row a question, got "
            f"{tuple(pooled.shape)}"
        )
    *questions, contexts, _ = logits.shape
    problem = Problem(
        logits.flatten(0, -3) if questions else logits[None], unconditional, None,
        None if previous is None else previous.reshape(-1),
        beta, eta, top_p, "mean", renormalise_entropy,
    )  # fmt: skip
    chosen = scores_of(problem, entropies.detach().reshape(-1, contexts)).argmin(-1)
    merged = combined(problem, pooled, _kept(unconditional, top_p, False)[0])
    return Merged(merged.log_softmax(-1), chosen.reshape(questions), entropies)


def _kept(logits: Tensor, top_p: float, renormalise: bool) -> tuple[Tensor, Tensor]:
    """Truncated log-probabilities and their entropy."""
    log_probs = logits.to(statistics_dtype(logits.dtype)).log_softmax(-1)
    if top_p < 1.0:
        probs = log_probs.detach().exp()
        log_probs = log_probs.masked_fill(probs < smallest_kept_op(probs, top_p), NOTHING)
    shares = log_probs
    if renormalise:
        shares = log_probs.log_softmax(-1)
    finite = shares.masked_fill(shares == NOTHING, 0.0)
    return log_probs, -(shares.exp() * finite).sum(-1)


@torch.library.custom_op("ropewalk::smallest_kept", mutates_args=())
def smallest_kept_op(probabilities: Tensor, top_p: float) -> Tensor:
    """`reference.cutoff.smallest_kept`, whose search a compiler cannot trace."""
    return smallest_kept(probabilities, top_p)


@smallest_kept_op.register_fake
def _(probabilities: Tensor, top_p: float) -> Tensor:
    return probabilities.new_empty((*probabilities.shape[:-1], 1))
