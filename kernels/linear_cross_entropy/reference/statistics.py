"""Forward: what the loss needs to know of each token's logits."""

import torch
from torch import Tensor

from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.linear_cross_entropy.chunks import spans
from ropewalk.kernels.linear_cross_entropy.filter import FILTER_COLUMNS, map_shape, mark_live
from ropewalk.kernels.linear_cross_entropy.problem import Problem, Statistics
from ropewalk.kernels.linear_cross_entropy.reference.tiles import (
    Selection,
    Tiles,
    counted_tokens,
    places,
)


def statistics(problem: Problem) -> Statistics:
    """logsumexp, the target's logit and Σ s_v z_v of each token; see `problem.Statistics`."""
    tiles = Tiles(problem)
    dtype = statistics_dtype(problem.hidden.dtype)
    zeros = problem.hidden.new_zeros(problem.tokens, dtype=dtype)
    found = Statistics(
        zeros,
        zeros.clone(),
        None if problem.sum_weights is None else zeros.clone(),
        None,
    )
    if not problem.exact:
        shape = map_shape(problem.tokens, problem.vocabulary)
        found = found._replace(live=problem.targets.new_zeros(shape, dtype=torch.uint8))
    for tokens in counted_tokens(problem.targets, tiles.sizes.tokens):
        _add_chunk(tiles, tokens, found)
    return found


def _add_chunk(tiles: Tiles, tokens: Selection, found: Statistics) -> None:
    """Writes the statistics of some tokens."""
    problem = tiles.problem
    hidden, targets = tiles.hidden(tokens), problem.targets[tokens]
    target_logit = hidden.new_zeros(targets.shape)
    logit_sum = hidden.new_zeros(targets.shape)
    parts, greatest = [], []
    for start, end in spans(problem.vocabulary, tiles.sizes.columns):
        columns = slice(start, end)
        logits = tiles.logits(hidden, tiles.weight(columns), columns)
        rows, at = places(targets, columns, end - start)
        target_logit[rows] = logits[rows, at]
        if problem.sum_weights is not None:
            logit_sum += logits @ problem.sum_weights[columns]
        if found.live is not None:
            greatest += [part.amax(1, keepdim=True) for part in logits.split(FILTER_COLUMNS, 1)]
        parts.append(_logsumexp_(logits))
    found.logsumexp[tokens] = logsumexp = torch.stack(parts).logsumexp(0)
    found.target_logit[tokens] = target_logit
    if found.logit_sum is not None:
        found.logit_sum[tokens] = logit_sum
    if found.live is not None:
        indices = torch.arange(problem.tokens, device=targets.device)[tokens]
        dtype = problem.hidden.dtype
        mark_live(found.live, indices, torch.cat(greatest, 1), logsumexp, targets, dtype)


def _logsumexp_(logits: Tensor) -> Tensor:
    """Over the columns; spoils the logits, and so takes no second tile."""
    # Clamped, because a tile may be all −∞ where a bias masks tokens; NaN stays NaN.
    greatest = logits.amax(1).clamp_(min=torch.finfo(logits.dtype).min)
    return logits.sub_(greatest[:, None]).exp_().sum(1).log_().add_(greatest)
