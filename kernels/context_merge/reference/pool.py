"""From the distributions of all contexts to one.

Each function takes truncated log-probabilities (questions, contexts, vocabulary) and gives
(questions, vocabulary).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

Rows = Float[Tensor, "questions contexts vocabulary"]
Pooled = Float[Tensor, "questions vocabulary"]
Weights = Float[Tensor, "questions contexts"]


def chosen_row(rows: Rows, chosen: Int[Tensor, " questions"]) -> Pooled:
    """The row of the chosen context."""
    return rows[torch.arange(rows.shape[0], device=rows.device), chosen]


def mean(truncated: Rows, whole: Rows, log_prior: Weights | None) -> Pooled:
    """Σ_k w_k ln p_k with weights that sum to 1: a logarithmic opinion pool.

    A token that one context drops is dropped. Contexts may have no kept token in common; then the
    tokens that any of them keeps have the mean of their probabilities before truncation.
    """
    weights = truncated.new_zeros(truncated.shape[:2]) if log_prior is None else log_prior
    weights = weights.softmax(-1)[..., None]
    takes_part = weights > 0

    def weighted(rows: Rows) -> Pooled:
        return torch.where(takes_part, weights * rows, 0.0).sum(1)

    pooled = weighted(truncated)
    kept_by_one = ((truncated > float("-inf")) & takes_part).any(1)
    otherwise = weighted(whole).masked_fill(~kept_by_one, float("-inf"))
    nothing_left = (pooled == float("-inf")).all(-1, keepdim=True)
    return torch.where(nothing_left, otherwise, pooled)


def largest(truncated: Rows, log_prior: Weights | None) -> Pooled:
    """The largest probability that any context gives to a token, by its prior weight."""
    return (truncated if log_prior is None else truncated + log_prior[..., None]).amax(1)


def mixture(truncated: Rows, scores: Weights) -> Pooled:
    """The mixture ln Σ_k softmax(−score)_k p_k: a linear opinion pool, heavier where surer."""
    return ((-scores).log_softmax(-1)[..., None] + truncated).logsumexp(1)
