"""What is known of each row of logits before rows are merged.

A row with a NaN is NaN: comparisons are so written that it is not dropped.
Rows are taken a few at a time, as many as stay in a processor's cache.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.context_merge.problem import Problem
from ropewalk.kernels.context_merge.reference.cutoff import (
    FEW,
    lower_bound,
    smallest_kept,
    smallest_of,
)
from ropewalk.kernels.dtypes import statistics_dtype

AT_ONCE = 2**20  # logits
FEW_OF = 4  # a share of a row up to 1 / FEW_OF is few
# A probability may round to less than the bound that its logarithm was above.
BELOW = 0.999


class RowStatistics(NamedTuple):
    """Numbers of each row, in `statistics_dtype`.

    Attributes:
        logsumexp: of all logits.
        cutoff: the smallest logit that is kept; −inf where all are.
        entropy: of what is kept, in nats.
    """

    logsumexp: Float[Tensor, "questions contexts"]
    cutoff: Float[Tensor, "questions contexts"]
    entropy: Float[Tensor, "questions contexts"]


def statistics_of(problem: Problem) -> tuple[RowStatistics, RowStatistics]:
    """Statistics of the contexts' rows, and of the unconditional one (questions, 1)."""
    logits, unconditional = problem.logits, problem.unconditional[:, None]
    if logits.numel() + unconditional.numel() > AT_ONCE:
        return _row_statistics(problem, logits), _row_statistics(problem, unconditional)
    # With so little work the number of operations is what takes time.
    together = _row_statistics(problem, torch.cat([logits, unconditional], dim=1))
    contexts, alone = zip(*(x.split([problem.contexts, 1], dim=1) for x in together), strict=True)
    return RowStatistics(*contexts), RowStatistics(*alone)


def _row_statistics(
    problem: Problem, logits: Float[Tensor, "questions contexts vocabulary"]
) -> RowStatistics:
    """Statistics of every row."""
    top_p, renormalise_entropy = problem.top_p, problem.renormalise_entropy
    _, contexts, vocabulary = logits.shape
    rows = max(1, AT_ONCE // vocabulary)
    blocks = []
    for some_questions in logits.split(max(1, rows // contexts)):
        parts = [
            _of_block(block, top_p, renormalise_entropy)
            for block in some_questions.split(rows, dim=1)
        ]
        blocks.append(RowStatistics(*(torch.cat(part, dim=1) for part in zip(*parts, strict=True))))
    return RowStatistics(*(torch.cat(block) for block in zip(*blocks, strict=True)))


def log_probabilities(
    logits: Float[Tensor, "*rows vocabulary"], logsumexp: Float[Tensor, "*rows"]
) -> Float[Tensor, "*rows vocabulary"]:
    """Normalised rows, in the dtype of their statistics."""
    return logits.to(logsumexp.dtype) - logsumexp[..., None]


def truncated(
    logits: Float[Tensor, "*rows vocabulary"],
    logsumexp: Float[Tensor, "*rows"],
    cutoff: Float[Tensor, "*rows"],
) -> Float[Tensor, "*rows vocabulary"]:
    """Normalised rows, −inf where a token is not kept."""
    dropped = logits < cutoff[..., None]
    return log_probabilities(logits, logsumexp).masked_fill(dropped, float("-inf"))


def _of_block(
    logits: Float[Tensor, "questions contexts vocabulary"], top_p: float, renormalise: bool
) -> RowStatistics:
    logits = logits.to(statistics_dtype(logits.dtype))
    logsumexp = logits.logsumexp(-1)
    if top_p < 1.0 and logits.shape[-1] > FEW:
        return _of_long_rows(logits, logsumexp, top_p, renormalise)
    log_probs = log_probabilities(logits, logsumexp)
    probs = log_probs.exp()
    # 0 · ln 0 is 0.
    terms = probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)
    if top_p == 1.0:
        return RowStatistics(logsumexp, torch.full_like(logsumexp, float("-inf")), -terms.sum(-1))
    dropped = probs < smallest_kept(probs, top_p)
    cutoff = logits.masked_fill(dropped, float("inf")).amin(-1)
    entropy = -terms.masked_fill(dropped, 0.0).sum(-1)
    if renormalise:
        entropy = _renormalised(entropy, probs.masked_fill(dropped, 0.0).sum(-1))
    return RowStatistics(logsumexp, cutoff, entropy)


def _of_long_rows(
    logits: Float[Tensor, "questions contexts vocabulary"],
    logsumexp: Float[Tensor, "questions contexts"],
    top_p: float,
    renormalise: bool,
) -> RowStatistics:
    """From those logits of each row that may be kept.

    They are picked out of all rows at once: what a thread is woken for should be worth it.
    """
    low = lower_bound(top_p, logits.shape[-1], logits.dtype)
    likely = logits > logsumexp[..., None] + math.log(low)
    counts = likely.sum(-1).flatten().tolist()
    # Picking out a few takes less time than what follows would take with all, but not most of them.
    if sum(counts) < logits.numel() // FEW_OF:
        candidates = logits[likely].split(counts)
    else:
        candidates = logits.flatten(0, 1).unbind()
    found = [
        _cutoff_and_entropy(row, row_logsumexp, top_p, low * BELOW, renormalise)
        for row, row_logsumexp in zip(candidates, logsumexp.flatten(), strict=True)
    ]
    cutoff, entropy = torch.stack([logsumexp.new_empty(2), *found])[1:].T
    return RowStatistics(logsumexp, cutoff.view_as(logsumexp), entropy.view_as(logsumexp))


def _cutoff_and_entropy(
    candidates: Float[Tensor, " columns"],
    logsumexp: Float[Tensor, ""],
    top_p: float,
    low: float,
    renormalise: bool,
) -> Float[Tensor, " 2"]:
    """Of one row, of which `candidates` has at least all logits that are kept."""
    if len(candidates) == 0:  # a row of NaN
        return logsumexp.new_full((2,), float("nan"))
    log_probs = candidates - logsumexp
    probs = log_probs.exp()
    dropped = probs < smallest_of(probs, top_p, low)
    entropy = -(probs * log_probs).masked_fill(dropped, 0.0).sum()
    if renormalise:
        entropy = _renormalised(entropy, probs.masked_fill(dropped, 0.0).sum())
    return torch.stack([candidates.masked_fill(dropped, float("inf")).min(), entropy])


def _renormalised(entropy: Tensor, mass: Tensor) -> Tensor:
    """That of p / mass, from −Σ p ln p."""
    return entropy / mass + mass.log()
