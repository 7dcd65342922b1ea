"""Backward: the logits once more, tile by tile, their gradient, and its products.

    dL/dz_v = g_logsumexp · exp(z_v − logsumexp) + g_target · [v = y] + g_sum · s_v
    hidden_grad = dL/da · weight      weight_grad = (dL/da)ᵀ · hidden      (a before scale and cap)

All tokens of one tile of columns follow each other, so that a tile of the weights' gradient is
summed in float32 and rounded once.
"""

from torch import Tensor

from ropewalk.kernels.linear_cross_entropy.chunks import spans
from ropewalk.kernels.linear_cross_entropy.filter import FILTER_COLUMNS, FILTER_TOKENS
from ropewalk.kernels.linear_cross_entropy.problem import Needs, Problem, Upstream
from ropewalk.kernels.linear_cross_entropy.reference.tiles import (
    Selection,
    Tiles,
    counted_tokens,
    places,
)

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def gradients(
    problem: Problem, logsumexp: Tensor, live: Tensor | None, upstream: Upstream, needs: Needs
) -> Gradients:
    """Of hidden, weight and bias, each in its dtype; none where it is not needed."""
    tiles = Tiles(problem)
    upstream = _scaled(upstream, problem.logit_scale)
    hidden_sum = problem.hidden.new_zeros(problem.hidden.shape, dtype=tiles.dtype)
    bias_sum = hidden_sum.new_zeros(problem.vocabulary)
    weight_grad = problem.weight.new_zeros(problem.weight.shape) if needs.weight else None
    chunks = counted_tokens(problem.targets, tiles.sizes.tokens)
    for start, end in spans(problem.vocabulary, tiles.sizes.columns):
        weight = tiles.weight(slice(start, end))
        # The gradient itself, or a float32 form of it where that is half precision.
        weight_sum = None if weight_grad is None else weight_grad[start:end].to(tiles.dtype)
        for tokens in chunks:
            columns = _live_columns(live, tokens, start, end)
            if columns is None:
                continue
            hidden, tile = tiles.hidden(tokens), weight[_less(columns, start)]
            grad = tiles.logits(hidden, tile, columns)
            _to_gradient(grad, tiles, tokens, columns, logsumexp, upstream)
            if needs.hidden:
                _add_product(hidden_sum, tokens, grad, tile)
            if weight_sum is not None:
                _add_product(weight_sum, _less(columns, start), grad.T, hidden)
            if needs.bias:
                bias_sum[columns] += grad.sum(0)
        if weight_grad is not None and weight_sum is not None:
            weight_grad[start:end] = weight_sum
    return (
        hidden_sum.to(problem.hidden.dtype) if needs.hidden else None,
        weight_grad,
        bias_sum.to(problem.bias.dtype) if needs.bias and problem.bias is not None else None,
    )


def _scaled(upstream: Upstream, scale: float) -> Upstream:
    logsumexp, target_logit, logit_sum = upstream
    summed = None if logit_sum is None else logit_sum * scale
    return Upstream(logsumexp * scale, target_logit * scale, summed)


def _to_gradient(
    logits: Tensor,
    tiles: Tiles,
    tokens: Selection,
    columns: Selection,
    logsumexp: Tensor,
    upstream: Upstream,
) -> None:
    """Turns a tile of capped logits into the gradient of what they are before scale and cap."""
    problem, slopes = tiles.problem, tiles.slopes(logits)
    logits.sub_(logsumexp[tokens, None]).exp_().mul_(upstream.logsumexp[tokens, None])
    if upstream.logit_sum is not None and problem.sum_weights is not None:
        logits.addr_(upstream.logit_sum[tokens], problem.sum_weights[columns])
    rows, at = places(problem.targets[tokens], columns, logits.shape[1])
    logits[rows, at] += upstream.target_logit[tokens][rows]
    if slopes is not None:
        logits.mul_(slopes)


def _live_columns(live: Tensor | None, tokens: Selection, start: int, end: int) -> Selection | None:
    """The columns of a tile whose gradient counts for some of its tokens, or none."""
    if live is None:
        return slice(start, end)
    if isinstance(tokens, slice):
        blocks = live[tokens.start // FILTER_TOKENS : -(-tokens.stop // FILTER_TOKENS)]
    else:
        blocks = live[tokens.div(FILTER_TOKENS, rounding_mode="floor").unique()]
    tiles = blocks[:, start // FILTER_COLUMNS : -(-end // FILTER_COLUMNS)].any(0)
    if tiles.all():
        return slice(start, end)
    if not tiles.any():
        return None
    inside = tiles.repeat_interleave(FILTER_COLUMNS)[: end - start]
    return inside.nonzero()[:, 0] + start


def _less(columns: Selection, start: int) -> Selection:
    """The same columns counted from `start`."""
    if isinstance(columns, slice):
        return slice(columns.start - start, columns.stop - start)
    return columns - start


def _add_product(total: Tensor, rows: Selection, left: Tensor, right: Tensor) -> None:
    """total[rows] += left · right."""
    if isinstance(rows, slice):
        total[rows].addmm_(left, right)
    else:
        total.index_add_(0, rows, left @ right)
