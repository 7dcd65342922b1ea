"""The steps of a loss: checks, targets as codes, statistics, reduction; on one rank or on many."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.autocast import cast_inputs
from ropewalk.kernels.backends import Backend, check_backend
from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.linear_cross_entropy import validation
from ropewalk.kernels.linear_cross_entropy.at_once import at_once, loss_at_once
from ropewalk.kernels.linear_cross_entropy.op import vocabulary_statistics
from ropewalk.kernels.linear_cross_entropy.problem import Problem, Statistics
from ropewalk.kernels.linear_cross_entropy.reduction import (
    Objective,
    Reduction,
    factors,
    token_losses,
)
from ropewalk.kernels.linear_cross_entropy.targets import encode_targets

Loss = Float[Tensor, ""] | Float[Tensor, "*batch"]


@dataclass(frozen=True)
class VocabularySlice:
    """The rows of the vocabulary that this rank holds.

    Attributes:
        start: the first of them.
        vocabulary: how many there are on all ranks.
        share_hidden: hidden states on their way to this slice; their gradient on its way back is
            summed over the ranks.
        merge: statistics of this slice and codes of the targets to statistics of all slices.
    """

    start: int
    vocabulary: int
    share_hidden: Callable[[Tensor], Tensor]
    merge: Callable[[Statistics, Tensor], Statistics]


def assemble(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    part: VocabularySlice | None,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    weight_per_class: Tensor | None = None,
    reduction: Reduction = "mean",
    return_logsumexp: bool = False,
    shift: bool = False,
    exact: bool = True,
    backend: Backend = "auto",
) -> Loss | tuple[Loss, Float[Tensor, "*batch"]]:
    """`loss.linear_cross_entropy`, where `weight` and `bias` may be a slice of the vocabulary."""
    check_backend(backend)
    validation.check_tensors(hidden, weight, targets, bias)
    validation.check_options(
        ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
        softcap=softcap, logit_scale=logit_scale, reduction=reduction,
    )  # fmt: skip
    validation.check_switches(return_logsumexp=return_logsumexp, shift=shift, exact=exact)
    columns = weight.shape[0]
    vocabulary = columns if part is None else part.vocabulary
    validation.check_weight_per_class(weight_per_class, vocabulary, hidden)
    if shift:
        validation.check_shift(hidden)
    hidden, weight = cast_inputs(hidden, weight)
    if bias is not None:
        (bias,) = cast_inputs(bias)
    validation.check_dtypes(hidden, weight, bias)

    if shift:
        targets = _next(targets, ignore_index)
    flat = targets.reshape(-1)
    start = 0 if part is None else part.start
    codes = encode_targets(flat, ignore_index, vocabulary, start, columns)
    objective = Objective(
        vocabulary, float(label_smoothing), float(z_loss), weight_per_class, reduction
    )
    like = hidden.new_empty(0, dtype=statistics_dtype(hidden.dtype))
    sum_weights = objective.sum_weights(like)
    shared = hidden if part is None else part.share_hidden(hidden)
    problem = Problem(
        hidden=shared.reshape(flat.shape[0], weight.shape[1]),
        weight=weight,
        targets=codes,
        bias=bias,
        sum_weights=None if sum_weights is None else sum_weights[start : start + columns],
        logit_scale=float(logit_scale),
        softcap=None if softcap is None else float(softcap),
        exact=exact or label_smoothing > 0.0,
    )
    parts = factors(objective, flat, codes, like)
    one_number = part is None and reduction != "none" and not return_logsumexp
    if one_number and at_once(problem, backend):
        return loss_at_once(problem, parts)
    statistics = vocabulary_statistics(problem, backend)
    if part is not None:
        statistics = part.merge(statistics, codes)
    losses = token_losses(parts, statistics, sum_weights)
    loss = _as_targets(losses, targets, shift) if reduction == "none" else losses.sum()
    if return_logsumexp:
        return loss, _as_targets(statistics.logsumexp, targets, shift)
    return loss


def _next(targets: Tensor, ignore_index: int) -> Tensor:
    """Each token's successor, and none for the last one."""
    targets = targets.to(torch.int64)  # an unsigned type could not hold ignore_index
    last = torch.full_like(targets[..., :1], ignore_index)
    return torch.cat((targets[..., 1:], last), -1)


def _as_targets(x: Tensor, targets: Tensor, shift: bool) -> Tensor:
    """(tokens,) in the shape of the targets, without the last one if they were shifted."""
    x = x.reshape(targets.shape)
    return x[..., :-1] if shift else x
