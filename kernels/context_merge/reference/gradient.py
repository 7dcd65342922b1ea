"""The gradient of a merge, where what is kept and which context is chosen are constants.

Everything is computed again from the logits. With m the merged rows before normalisation, P the
pooled ones, lp = ln p a row's log-probabilities and x its logits, from the result back:

    dL/dm  = g − softmax(m) Σ g                 over the tokens that there are
    dL/dP  = (1 + β) dL/dm                      dL/dm where the unconditional row is cut
    dH/dlp = −p (lp + 1)                        over what is kept
             −p (lp + H') / mass                H' the entropy of what is kept, renormalised
    dL/dx  = dL/dlp − p Σ dL/dlp
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.context_merge.problem import Problem
from ropewalk.kernels.context_merge.reference.merge import (
    AT_ONCE,
    combined,
    pooled_of,
    scores_of,
    truncated_unconditional,
)
from ropewalk.kernels.context_merge.reference.rows import (
    RowStatistics,
    log_probabilities,
    statistics_of,
    truncated,
)

NOTHING = float("-inf")
Rows = Float[Tensor, "questions contexts vocabulary"]
Row = Float[Tensor, "questions vocabulary"]
Weights = Float[Tensor, "questions contexts"]


def gradient(
    problem: Problem, log_probs_grad: Row, entropies_grad: Weights
) -> tuple[Rows, Row, Weights | None]:
    """Gradients of logits, unconditional and log_prior (None without one).

    Args:
        problem: what was merged.
        log_probs_grad: of the loss in the merged log-probabilities.
        entropies_grad: of the loss in the contexts' entropies.
    """
    logits_grad = torch.empty_like(problem.logits, memory_format=torch.contiguous_format)
    unconditional_grad = torch.empty_like(
        problem.unconditional, memory_format=torch.contiguous_format
    )
    prior_grad = None if problem.log_prior is None else torch.empty_like(problem.log_prior)
    step = max(1, AT_ONCE // (problem.contexts * problem.vocabulary))
    for start in range(0, problem.questions, step):
        some = slice(start, start + step)
        part = replace(
            problem,
            logits=problem.logits[some],
            unconditional=problem.unconditional[some],
            log_prior=None if problem.log_prior is None else problem.log_prior[some],
            previous=None if problem.previous is None else problem.previous[some],
        )
        found = _of_questions(part, log_probs_grad[some], entropies_grad[some])
        logits_grad[some], unconditional_grad[some] = found[:2]
        if prior_grad is not None:
            prior_grad[some] = found[2]
    return logits_grad, unconditional_grad, prior_grad


def _of_questions(
    problem: Problem, log_probs_grad: Row, entropies_grad: Weights
) -> tuple[Rows, Row, Weights]:
    rows, alone = statistics_of(problem)
    scores = scores_of(problem, rows.entropy)
    chosen = scores.argmin(-1)
    pooled = pooled_of(problem, rows, scores, chosen)
    unconditional = truncated_unconditional(problem, alone)
    merged = combined(problem, pooled, unconditional)

    exists = merged > NOTHING
    upstream = log_probs_grad.masked_fill(~exists, 0.0)
    merged_grad = upstream - merged.softmax(-1) * upstream.sum(-1, keepdim=True)
    subtracted = exists & (unconditional > NOTHING)
    pooled_grad = torch.where(subtracted, (1.0 + problem.beta) * merged_grad, merged_grad)
    unconditional_grad = (-problem.beta * merged_grad).masked_fill(~subtracted, 0.0)

    log_probs = log_probabilities(problem.logits, rows.logsumexp)
    kept = truncated(problem.logits, rows.logsumexp, rows.cutoff)
    rows_grad, scores_grad, prior_grad = _through_pool(
        problem, log_probs, kept, scores, chosen, pooled_grad
    )
    entropies_grad = entropies_grad + scores_grad
    rows_grad = rows_grad + entropies_grad[..., None] * _entropy_slope(problem, rows, kept)
    return (
        _through_normalisation(rows_grad, log_probs),
        _through_normalisation(
            unconditional_grad,
            problem.unconditional.to(merged.dtype).log_softmax(-1),
        ),
        prior_grad - scores_grad,
    )


def _through_pool(
    problem: Problem,
    log_probs: Rows,
    kept: Rows,
    scores: Weights,
    chosen: Tensor,
    pooled_grad: Row,
) -> tuple[Rows, Weights, Weights]:
    """Gradients of the rows, the scores and the prior from that of the pooled row."""
    upstream = pooled_grad[:, None]
    nothing = torch.zeros_like(scores)
    if problem.pooling == "min_entropy":
        is_chosen = torch.arange(problem.contexts, device=chosen.device) == chosen[:, None]
        return upstream * is_chosen[..., None], nothing, nothing
    if problem.pooling == "mean":
        prior = nothing if problem.log_prior is None else problem.log_prior
        weights = prior.softmax(-1)
        # Where a token was dropped by all there is no gradient; where contexts had nothing in
        # common, it is the rows before they were cut that were averaged.
        finite = log_probs.masked_fill(log_probs == NOTHING, 0.0)
        slope = (upstream * finite).sum(-1)
        prior_grad = weights * (slope - (weights * slope).sum(-1, keepdim=True))
        return weights[..., None] * upstream, nothing, prior_grad
    if problem.pooling == "max":
        weighted = kept if problem.log_prior is None else kept + problem.log_prior[..., None]
        largest = (weighted == weighted.amax(1, keepdim=True)).to(upstream.dtype)
        shares = upstream * largest / largest.sum(1, keepdim=True)
        return shares, nothing, shares.sum(-1)
    weights = (-scores).softmax(-1)
    blamed = ((-scores).log_softmax(-1)[..., None] + kept).softmax(1).nan_to_num(0.0)
    shares = blamed * upstream
    slope = shares.sum(-1)
    return shares, weights * slope.sum(-1, keepdim=True) - slope, nothing


def _entropy_slope(problem: Problem, rows: RowStatistics, kept: Rows) -> Rows:
    """The derivative of each row's entropy in its log-probabilities."""
    probs = kept.exp()
    finite = kept.masked_fill(kept == NOTHING, 0.0)
    if not problem.renormalise_entropy:
        return -probs * (finite + 1.0)
    share = probs / probs.sum(-1, keepdim=True)
    # H' = H / mass + ln mass, so lp + H' − ln mass is the logarithm's distance from its mean.
    log_mass = probs.sum(-1).log()
    return -share * (finite + (rows.entropy - log_mass)[..., None])


def _through_normalisation(log_probs_grad: Tensor, log_probs: Tensor) -> Tensor:
    return log_probs_grad - log_probs.exp() * log_probs_grad.sum(-1, keepdim=True)
