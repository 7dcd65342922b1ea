"""The running softmax: attention to one set of keys after another, merged exactly.

    m' = max(m, max_j s_j)
    l' = l e^{m − m'} + Σ_j e^{s_j − m'}
    o' = o e^{m − m'} + Σ_j e^{s_j − m'} v_j

and in the end o / l with logsumexp m + ln l (FlashAttention, arXiv 2205.14135, 2307.08691). A set
of keys whose attention is known enters as one key: its logsumexp is the score, its output the
value.
"""

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.reference.walk import Walk
from ropewalk.kernels.rotary_attention.schedule import Piece


class RunningSoftmax:
    """Running softmax of all queries: maximum, sum and weighted values of the keys seen so far."""

    def __init__(self, problem: Problem) -> None:
        batch, heads, queries, _ = problem.query.shape
        options = {"dtype": problem.dtype, "device": problem.query.device}
        self.maximum = torch.full((batch, heads, queries, 1), -torch.inf, **options)
        self.total = torch.zeros((batch, heads, queries, 1), **options)
        self.values = torch.zeros((batch, heads, queries, problem.value.shape[-1]), **options)
        if problem.sinks is not None:
            # A sink is a key that was seen before all others and has no value.
            self.maximum.copy_(problem.sinks.to(problem.dtype)[:, None, None])
            self.total.fill_(1.0)

    def _raise_maximum(self, block: slice, maximum: Tensor) -> Tensor:
        """Raises the maximum and returns it, finite even where nothing has been seen."""
        old = self.maximum[:, :, block]
        new = torch.maximum(old, maximum)
        finite = new.masked_fill(new == -torch.inf, 0.0)
        keep = torch.exp(old - finite)
        self.maximum[:, :, block] = new
        self.total[:, :, block] *= keep
        self.values[:, :, block] *= keep
        return finite

    def add_scores(self, walk: Walk, piece: Piece, scores: Tensor) -> None:
        """Adds a tile of scores, which are overwritten."""
        block = slice(piece.start, piece.stop)
        by_head = walk.by_head(scores)
        by_head.sub_(self._raise_maximum(block, by_head.amax(-1, keepdim=True))).exp_()
        self.total[:, :, block] += by_head.sum(-1, keepdim=True)
        value = walk.value[:, :, piece.run.start : piece.run.stop]
        self.values[:, :, block] += walk.by_head(scores @ value)

    def add_attention(self, piece: Piece, output: Tensor, logsumexp: Tensor) -> None:
        """Adds attention to other keys, by its output and logsumexp."""
        block = slice(piece.start, piece.stop)
        weight = torch.exp(logsumexp - self._raise_maximum(block, logsumexp))
        self.total[:, :, block] += weight
        self.values[:, :, block].addcmul_(output, weight)

    def finish(self) -> tuple[Tensor, Tensor]:
        # A row that sees no key has a total of 0: its output is 0 and its logsumexp −∞.
        output = self.values.div_(self.total.masked_fill(self.total == 0, 1.0))
        return output, (self.maximum + self.total.log()).squeeze(-1)
