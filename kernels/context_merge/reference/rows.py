"""What is known of each row of logits before rows are merged.

Rows are taken a few at a time, as many as stay in a processor's cache.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.context_merge.problem import Problem, statistics_dtype
from ropewalk.kernels.context_merge.reference.cutoff import smallest_kept

AT_ONCE = 2**17  # logits


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
    kept = logits >= cutoff[..., None]
    return log_probabilities(logits, logsumexp).masked_fill(~kept, float("-inf"))


def _of_block(
    logits: Float[Tensor, "questions contexts vocabulary"], top_p: float, renormalise: bool
) -> RowStatistics:
    logits = logits.to(statistics_dtype(logits))
    logsumexp = logits.logsumexp(-1)
    log_probs = log_probabilities(logits, logsumexp)
    probs = log_probs.exp()
    # 0 · ln 0 is 0.
    terms = probs * log_probs.clamp_min(torch.finfo(log_probs.dtype).min)
    if top_p == 1.0:
        return RowStatistics(logsumexp, torch.full_like(logsumexp, float("-inf")), -terms.sum(-1))
    kept = probs >= smallest_kept(probs, top_p)
    cutoff = logits.masked_fill(~kept, float("inf")).amin(-1)
    entropy = -terms.masked_fill(~kept, 0.0).sum(-1)
    if renormalise:
        mass = probs.masked_fill(~kept, 0.0).sum(-1)
        entropy = entropy / mass + mass.log()
    return RowStatistics(logsumexp, cutoff, entropy)
