"""From a tile of logits to the gradient of the loss with respect to it, in place; and its products.

dL/dz_v = g_logsumexp · exp(z_v − logsumexp) + g_target · [v = y] + g_sum · s_v
"""

import torch
from torch import Tensor

from ropewalk.kernels.linear_cross_entropy.problem import Upstream
from ropewalk.kernels.linear_cross_entropy.reference.tiles import Selection, places


def to_gradient(
    logits: Tensor,
    slopes: Tensor | None,
    targets: Tensor,
    columns: Selection,
    logsumexp: Tensor,
    upstream: Upstream,
    sum_weights: Tensor | None,
) -> None:
    """Turns capped logits into the gradient of what they are before scale and cap.

    Args:
        logits: (tokens, columns), written to.
        slopes: of the cap at these logits, or none without a cap.
        targets: (tokens,), as `Problem` has them.
        columns: where the tile lies in the vocabulary.
        logsumexp: (tokens,).
        upstream: of these tokens, times the logits' scale.
        sum_weights: (vocabulary,), or none.
    """
    # A slice of the vocabulary may be all −∞ for a token that another slice holds.
    logsumexp = logsumexp.clamp(min=torch.finfo(logsumexp.dtype).min)
    logits.sub_(logsumexp[:, None]).exp_().mul_(upstream.logsumexp[:, None])
    if upstream.logit_sum is not None and sum_weights is not None:
        logits.addr_(upstream.logit_sum, sum_weights[columns])
    rows, at = places(targets, columns, logits.shape[1])
    logits[rows, at] += upstream.target_logit[rows]
    if slopes is not None:
        logits.mul_(slopes)


def scaled(upstream: Upstream, scale: float) -> Upstream:
    """The gradients of statistics of unscaled logits."""
    logsumexp, target_logit, logit_sum = upstream
    summed = None if logit_sum is None else logit_sum * scale
    return Upstream(logsumexp * scale, target_logit * scale, summed)


def add_product(total: Tensor, rows: Selection, left: Tensor, right: Tensor) -> None:
    """total[rows] += left · right."""
    if isinstance(rows, slice):
        total[rows].addmm_(left, right)
    else:
        total.index_add_(0, rows, left @ right)
