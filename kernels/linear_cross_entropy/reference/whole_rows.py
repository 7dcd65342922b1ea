"""The loss and its gradients from whole rows of logits, a chunk of tokens at a time.

With all of a token's logits at hand torch's softmax turns them into probabilities where they are, a
row in a core's cache at a time, and the gradient follows in place. The logsumexp is read off the
greatest probability, which is never small. Where the loss is a plain mean or sum, a token's factor
is multiplied onto its hidden state and its gradient, which are shorter than its logits.
"""

import torch
from torch import Tensor

from ropewalk.kernels.linear_cross_entropy.chunks import WORKSPACE, Chunks
from ropewalk.kernels.linear_cross_entropy.problem import Needs, Problem, Statistics
from ropewalk.kernels.linear_cross_entropy.reduction import Factors, token_losses
from ropewalk.kernels.linear_cross_entropy.reference.gradients import Gradients
from ropewalk.kernels.linear_cross_entropy.reference.tiles import Tiles, counted_tokens, places

# A product with fewer tokens loses more than the fourth product costs; more gain nothing.
LEAST_TOKENS, MOST_TOKENS = 128, 256


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
    weight = problem.weight
    total = problem.hidden.new_zeros(())
    # In rows, whatever the strides of the inputs: what the fake operator says.
    hidden_grad = weight.new_zeros(problem.hidden.shape) if needs.hidden else None
    weight_grad = weight.new_zeros(weight.shape) if needs.weight else None
    bias_grad = weight.new_zeros(problem.vocabulary) if needs.bias else None
    for rows in counted_tokens(problem.targets, tokens):
        hidden = tiles.hidden(rows)
        grad = tiles.logits(hidden, weight, slice(0, problem.vocabulary))
        loss, factor = _to_gradient(grad, tiles, problem.targets[rows], factors.of(rows))
        total += loss
        if hidden_grad is not None:
            hidden_grad[rows] = (grad @ weight).mul_(factor[:, None])
        if weight_grad is not None:
            weight_grad.addmm_(grad.T, hidden * factor[:, None])
        if bias_grad is not None:
            bias_grad += factor @ grad
    return total, (hidden_grad, weight_grad, bias_grad)


def _to_gradient(
    logits: Tensor, tiles: Tiles, targets: Tensor, factors: Factors
) -> tuple[Tensor, Tensor]:
    """Turns the logits of some tokens into their gradient, but for a factor a token.

    Returns:
        The sum of the tokens' losses, and the factors.
    """
    problem, slopes = tiles.problem, tiles.slopes(logits)
    at = places(targets, slice(0, logits.shape[1]), logits.shape[1])
    sum_weights = problem.sum_weights
    target_logit = logits[at]  # of every token: none is ignored, and none elsewhere
    logit_sum = None if sum_weights is None else logits @ sum_weights
    greatest = logits.amax(1)
    torch.softmax(logits, 1, out=logits)
    logsumexp = greatest - logits.amax(1).log_()
    statistics = Statistics(logsumexp, target_logit, logit_sum, None)
    loss = token_losses(factors, statistics, sum_weights).sum()

    if factors.spread is None and factors.square is None:
        logits[at] -= 1.0
        factor = factors.nll * problem.logit_scale
    else:
        grad = factors.nll
        if factors.spread is not None and sum_weights is not None:
            grad = grad + factors.spread * sum_weights.sum()
        if factors.square is not None:
            grad = grad + 2 * factors.square * logsumexp
        logits.mul_(grad[:, None])
        if factors.spread is not None and sum_weights is not None:
            logits.addr_(factors.spread, sum_weights, alpha=-1)
        logits[at] -= factors.nll
        factor = torch.full_like(logsumexp, problem.logit_scale)
    if slopes is not None:
        logits.mul_(slopes)
    return loss, factor
