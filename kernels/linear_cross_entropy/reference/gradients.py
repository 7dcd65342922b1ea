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
from ropewalk.kernels.linear_cross_entropy.reference.logit_gradient import (
    add_product,
    scaled,
    to_gradient,
)
from ropewalk.kernels.linear_cross_entropy.reference.tiles import Selection, Tiles, counted_tokens

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def gradients(
    problem: Problem, logsumexp: Tensor, live: Tensor | None, upstream: Upstream, needs: Needs
) -> Gradients:
    """Of hidden, weight and bias, each in its dtype; none where it is not needed."""
    tiles = Tiles(problem)
    upstream = scaled(upstream, problem.logit_scale)
    wide = problem.hidden.new_empty(0, dtype=tiles.dtype)
    hidden_sum = wide.new_zeros(problem.hidden.shape) if needs.hidden else None
    bias_sum = wide.new_zeros(problem.vocabulary) if needs.bias else None
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
            to_gradient(
                grad, tiles.slopes(grad), problem.targets[tokens], columns, logsumexp[tokens],
                upstream.of(tokens), problem.sum_weights,
            )  # fmt: skip
            if hidden_sum is not None:
                add_product(hidden_sum, tokens, grad, tile)
            if weight_sum is not None:
                add_product(weight_sum, _less(columns, start), grad.T, hidden)
            if bias_sum is not None:
                bias_sum[columns] += grad.sum(0)
        if weight_grad is not None and weight_sum is not None:
            weight_grad[start:end] = weight_sum
    return (
        None if hidden_sum is None else hidden_sum.to(problem.hidden.dtype),
        weight_grad,
        None if bias_sum is None or problem.bias is None else bias_sum.to(problem.bias.dtype),
    )


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
