"""The loss and its gradients from whole rows of logits, a chunk of tokens at a time.

With all of a token's logits at hand the gradient follows in place, so that they are computed once.
The steps between the products go by a few rows, which a cache holds.
"""

from torch import Tensor

from ropewalk.kernels.linear_cross_entropy.chunks import WORKSPACE, Chunks, spans
from ropewalk.kernels.linear_cross_entropy.problem import Needs, Problem, Statistics, Upstream
from ropewalk.kernels.linear_cross_entropy.reduction import Factors, token_losses
from ropewalk.kernels.linear_cross_entropy.reference.gradients import Gradients
from ropewalk.kernels.linear_cross_entropy.reference.logit_gradient import (
    add_product,
    scaled,
    to_gradient,
)
from ropewalk.kernels.linear_cross_entropy.reference.tiles import Tiles, counted_tokens, places

# A product with fewer tokens loses more than the fourth product costs; more gain nothing.
LEAST_TOKENS, MOST_TOKENS = 128, 256
CACHE = 2**20
"""Bytes of logits between whose passes nothing leaves a core's cache."""


def rows_at_once(problem: Problem) -> int:
    """How many tokens' logits, and the slopes of their cap, are held: in most of the workspace."""
    tiles = 1 if problem.softcap is None else 2
    row = tiles * problem.vocabulary * problem.hidden.dtype.itemsize
    return min(MOST_TOKENS, WORKSPACE * 3 // 4 // row)


def loss_and_gradients(
    problem: Problem, factors: Factors, needs: Needs
) -> tuple[Tensor, Gradients]:
    """The sum of all tokens' losses and its gradients of hidden, weight and bias."""
    tokens = max(1, rows_at_once(problem))
    tiles = Tiles(problem, Chunks(tokens, problem.vocabulary))
    columns, weight = slice(0, problem.vocabulary), problem.weight
    total = problem.hidden.new_zeros(())
    # In rows, whatever the strides of the inputs: what the fake operator says.
    hidden_grad = weight.new_zeros(problem.hidden.shape) if needs.hidden else None
    weight_grad = weight.new_zeros(weight.shape) if needs.weight else None
    bias_grad = weight.new_zeros(problem.vocabulary) if needs.bias else None
    for rows in counted_tokens(problem.targets, tokens):
        hidden = tiles.hidden(rows)
        logits = tiles.logits(hidden, weight, columns)
        here = factors.of(rows)
        total += _to_gradient(logits, tiles, problem.targets[rows], here)
        if hidden_grad is not None:
            add_product(hidden_grad, rows, logits, weight)
        if weight_grad is not None:
            weight_grad.addmm_(logits.T, hidden)
        if bias_grad is not None:
            bias_grad += logits.sum(0)
    return total, (hidden_grad, weight_grad, bias_grad)


def _to_gradient(logits: Tensor, tiles: Tiles, targets: Tensor, factors: Factors) -> Tensor:
    """Turns the logits of some tokens into their gradient; the sum of these tokens' losses."""
    problem, columns = tiles.problem, slice(0, tiles.problem.vocabulary)
    slopes = tiles.slopes(logits)
    total = logits.new_zeros(())
    step = max(1, CACHE // (logits.shape[1] * logits.dtype.itemsize))
    for start, end in spans(logits.shape[0], step):
        few = slice(start, end)
        here = factors.of(few)
        statistics = _statistics(logits[few], targets[few], problem.sum_weights)
        total += token_losses(here, statistics, problem.sum_weights).sum()
        to_gradient(
            logits[few], None if slopes is None else slopes[few], targets[few], columns,
            statistics.logsumexp, _upstream(here, statistics, problem), problem.sum_weights,
        )  # fmt: skip
    return total


def _statistics(logits: Tensor, targets: Tensor, sum_weights: Tensor | None) -> Statistics:
    at = places(targets, slice(0, logits.shape[1]), logits.shape[1])
    target_logit = logits.new_zeros(logits.shape[0])
    target_logit[at[0]] = logits[at]
    logit_sum = None if sum_weights is None else logits @ sum_weights
    return Statistics(logits.logsumexp(1), target_logit, logit_sum, None)


def _upstream(factors: Factors, statistics: Statistics, problem: Problem) -> Upstream:
    """The derivatives of `reduction.token_losses`."""
    logsumexp_grad, logit_sum_grad = factors.nll, None
    if factors.spread is not None and problem.sum_weights is not None:
        logsumexp_grad = logsumexp_grad + factors.spread * problem.sum_weights.sum()
        logit_sum_grad = -factors.spread
    if factors.square is not None:
        logsumexp_grad = logsumexp_grad + 2 * factors.square * statistics.logsumexp
    grads = Upstream(logsumexp_grad, -factors.nll, logit_sum_grad)
    return scaled(grads, problem.logit_scale)
