"""From a few numbers a token to a loss: label smoothing, class weights, z-loss, the reduction.

With target y, class weights c (ones), smoothing ε and V tokens in the vocabulary, a token's loss is

    (1 − ε) · c_y · (lse − z_y)  +  ε/V · Σ_v c_v · (lse − z_v)  +  ζ · lse²

which is torch's cross-entropy (Szegedy et al., arXiv 1512.00567, §7 for ε) and PaLM's z-loss
(arXiv 2204.02311, §5). An ignored token's numbers are zero and so is its loss.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.linear_cross_entropy.problem import IGNORED, Statistics

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Objective:
    """What is made of the statistics.

    Attributes:
        vocabulary: number of tokens that can be predicted, on all ranks together.
        label_smoothing: ε.
        z_loss: ζ.
        weight_per_class: c, (vocabulary,), or none for ones.
        reduction: over the tokens.
    """

    vocabulary: int
    label_smoothing: float
    z_loss: float
    weight_per_class: Tensor | None
    reduction: Reduction

    def sum_weights(self, like: Tensor) -> Tensor | None:
        """The weights of the sum of logits that smoothing needs, on `like`'s device."""
        if self.label_smoothing == 0.0:
            return None
        if self.weight_per_class is None:
            return like.new_ones(self.vocabulary)
        return self.weight_per_class.to(like.dtype)


class Factors(NamedTuple):
    """What the parts of each token's loss are multiplied by, the division of a mean included.

    loss = nll · (lse − z_y) + spread · (Σ_v c_v · lse − Σ_v c_v z_v) + square · lse²

    Attributes:
        nll: (tokens,).
        spread: (tokens,), or none without label smoothing.
        square: (tokens,), or none without z-loss.
    """

    nll: Tensor
    spread: Tensor | None
    square: Tensor | None

    def of(self, tokens: slice | Tensor) -> "Factors":
        """Those of some tokens."""
        spread, square = (None if x is None else x[tokens] for x in self[1:])
        return Factors(self.nll[tokens], spread, square)


def factors(objective: Objective, targets: Tensor, codes: Tensor, like: Tensor) -> Factors:
    """The factors of a loss.

    Args:
        objective: see there.
        targets: (tokens,) as the user gave them.
        codes: (tokens,) the same as codes, which say who is ignored.
        like: of the dtype and on the device of the statistics.
    """
    counted = share = (codes != IGNORED).to(like.dtype)
    if objective.weight_per_class is not None:
        row = targets.to(torch.int64).clamp(0, objective.vocabulary - 1)
        share = counted * objective.weight_per_class.to(like.dtype)[row]
    nll, spread, square = share * (1 - objective.label_smoothing), None, None
    if objective.label_smoothing > 0.0:
        spread = counted * (objective.label_smoothing / objective.vocabulary)
    if objective.z_loss > 0.0:
        square = counted * objective.z_loss
    if objective.reduction == "mean":
        divisor = _divisor(share)
        nll = nll / divisor
        spread = None if spread is None else spread / divisor
        square = None if square is None else square / _divisor(counted)
    return Factors(nll, spread, square)


def token_losses(factors: Factors, statistics: Statistics, sum_weights: Tensor | None) -> Tensor:
    """(tokens,), each already divided where the reduction is a mean."""
    logsumexp, target_logit, logit_sum, _ = statistics
    losses = factors.nll * (logsumexp - target_logit)
    if factors.spread is not None and logit_sum is not None and sum_weights is not None:
        losses = losses + factors.spread * (sum_weights.sum() * logsumexp - logit_sum)
    if factors.square is not None:
        losses = losses + factors.square * logsumexp.square()
    return losses


def _divisor(shares: Tensor) -> Tensor:
    """Their sum, or ∞ where nothing counts: the loss is 0 then, and so are its gradients."""
    total = shares.sum()
    return torch.where(total == 0, torch.inf, total)
