"""Scores of a question's contexts, the choice, and weights from the prior or from the scores.

    score_k = H_k − η [k = previous] − ln prior_k,   chosen = the first of least score

Every program of the merge computes them anew: they are a few numbers in the cache.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl


@triton.jit
def context_scores(
    entropies, log_prior, previous, question, contexts, eta,
    CONTEXTS: tl.constexpr, PRIOR: tl.constexpr, PREVIOUS: tl.constexpr,
):  # fmt: skip
    """Scores (CONTEXTS,), +∞ past the last context."""
    context = tl.arange(0, CONTEXTS)
    inside = context < contexts
    at = question.to(tl.int64) * contexts + context
    score = tl.load(entropies + at, mask=inside, other=float("inf"))
    if PREVIOUS:
        score -= tl.where(context == tl.load(previous + question), eta, 0.0)
    if PRIOR:
        score -= tl.load(log_prior + at, mask=inside, other=0.0)
    return score


@triton.jit
def first_of_least(score, contexts, CONTEXTS: tl.constexpr):
    """The context of least score, the first of equals; NaN is less than all, as in torch."""
    context = tl.arange(0, CONTEXTS)
    score = tl.where(score == score, score, float("-inf"))
    least = tl.min(score, axis=0)
    place = tl.min(tl.where((score == least) & (context < contexts), context, CONTEXTS), axis=0)
    return tl.minimum(place, contexts - 1)


@triton.jit
def log_softmax(x):
    """Of a vector, −∞ where it is −∞."""
    maximum = tl.max(x, axis=0)
    return x - maximum - tl.log(tl.sum(tl.exp(x - maximum), axis=0))


@triton.jit
def entry(x, place, SIZE: tl.constexpr):
    """One number of a vector."""
    return tl.sum(tl.where(tl.arange(0, SIZE) == place, x, 0.0), axis=0)
