"""The whole: statistics of each row, choice, pooling, and the unconditional taken off."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.kernels.context_merge.problem import Problem
from ropewalk.kernels.context_merge.reference import pool
from ropewalk.kernels.context_merge.reference.rows import (
    RowStatistics,
    log_probabilities,
    statistics_of,
    truncated,
)

AT_ONCE = 2**23  # logits of all contexts that are held as float32
NOTHING = float("-inf")

LogProbs = Float[Tensor, "questions vocabulary"]
Scores = Float[Tensor, "questions contexts"]


def merge(problem: Problem) -> tuple[LogProbs, Int[Tensor, " questions"], Scores]:
    """Merged log-probabilities, the chosen contexts, and every context's entropy."""
    rows, alone = statistics_of(problem)
    scores = scores_of(problem, rows.entropy)
    chosen = scores.argmin(-1)
    pooled = pooled_of(problem, rows, scores, chosen)
    merged = combined(problem, pooled, truncated_unconditional(problem, alone))
    return merged.log_softmax(-1), chosen, rows.entropy


def scores_of(problem: Problem, entropy: Scores) -> Scores:
    """Entropies, lowered for the context of the previous step and for those with a heavy prior."""
    scores = entropy
    if problem.previous is not None:
        places = torch.arange(problem.contexts, device=entropy.device)
        again = problem.previous[:, None] == places
        scores = torch.where(again, scores - problem.eta, scores)
    if problem.log_prior is not None:
        excluded = problem.log_prior == NOTHING
        scores = (scores - problem.log_prior).masked_fill(excluded, float("inf"))
    return scores


def pooled_of(
    problem: Problem, rows: RowStatistics, scores: Scores, chosen: Int[Tensor, " questions"]
) -> LogProbs:
    if problem.pooling == "min_entropy":
        logsumexp, cutoff = (x.gather(1, chosen[:, None])[:, 0] for x in rows[:2])
        return truncated(pool.chosen_row(problem.logits, chosen), logsumexp, cutoff)
    step = max(1, AT_ONCE // (problem.contexts * problem.vocabulary))
    parts = []
    for start in range(0, problem.questions, step):
        some = slice(start, start + step)
        logits, logsumexp, cutoff = (x[some] for x in (problem.logits, *rows[:2]))
        prior = None if problem.log_prior is None else problem.log_prior[some]
        kept = truncated(logits, logsumexp, cutoff)
        if problem.pooling == "mean":
            parts.append(pool.mean(kept, log_probabilities(logits, logsumexp), prior))
        elif problem.pooling == "max":
            parts.append(pool.largest(kept, prior))
        else:
            parts.append(pool.mixture(kept, scores[some]))
    return torch.cat(parts)


def truncated_unconditional(problem: Problem, alone: RowStatistics) -> LogProbs:
    """The row without context, cut as the others are."""
    return truncated(problem.unconditional, alone.logsumexp[:, 0], alone.cutoff[:, 0])


def combined(problem: Problem, pooled: LogProbs, unconditional: LogProbs) -> LogProbs:
    """(1 + β) pooled − β unconditional, and pooled alone where the latter is cut."""
    subtracted = (1.0 + problem.beta) * pooled - problem.beta * unconditional
    merged = torch.where(unconditional == NOTHING, pooled, subtracted)
    # Under β = −1 the pooled row says nothing but which tokens there are.
    return torch.where(pooled == NOTHING, NOTHING, merged)
