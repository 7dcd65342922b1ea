"""From a few numbers a token to a loss: label smoothing, class weights, z-loss, the reduction.

With target y, class weights c (ones), smoothing ε and V tokens in the vocabulary, a token's loss is

    (1 − ε) · c_y · (lse − z_y)  +  ε/V · Σ_v c_v · (lse − z_v)  +  ζ · lse²

which is torch's cross-entropy (Szegedy et al., arXiv 1512.00567, §7 for ε) and PaLM's z-loss
(arXiv 2204.02311, §5). An ignored token's numbers are zero and so is its loss.
"""

from dataclasses import dataclass
from typing import Literal, cast

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


def reduce(objective: Objective, statistics: Statistics, targets: Tensor, codes: Tensor) -> Tensor:
    """The loss, a scalar or (tokens,).

    Args:
        objective: see there.
        statistics: of all of the vocabulary.
        targets: (tokens,) as the user gave them.
        codes: (tokens,) the same as codes, which say who is ignored.
    """
    logsumexp, target_logit, logit_sum, _ = statistics
    counted = (codes != IGNORED).to(logsumexp.dtype)
    share = counted
    if objective.weight_per_class is not None:
        row = targets.to(torch.int64).clamp(0, objective.vocabulary - 1)
        share = counted * objective.weight_per_class.to(logsumexp.dtype)[row]
    loss = share * (logsumexp - target_logit)
    if logit_sum is not None:
        total = cast("Tensor", objective.sum_weights(logsumexp)).sum()
        spread = (total * logsumexp - logit_sum) / objective.vocabulary
        loss = torch.lerp(loss, spread, objective.label_smoothing)
    square = objective.z_loss * logsumexp.square() if objective.z_loss != 0.0 else None
    if objective.reduction == "none":
        return loss if square is None else loss + square
    if objective.reduction == "sum":
        return loss.sum() if square is None else loss.sum() + square.sum()
    mean = loss.sum() / _divisor(share)
    return mean if square is None else mean + square.sum() / _divisor(counted)


def _divisor(shares: Tensor) -> Tensor:
    """Their sum, or 1 where nothing counts: the loss is 0 then, and so are its gradients."""
    total = shares.sum()
    return torch.where(total == 0, 1.0, total)
