"""What an implementation gets and what it gives, beside the gradients.

An implementation is a module with two functions:

    statistics(problem) -> Statistics
    gradients(problem, logsumexp, live, upstream, needs) -> hidden, weight and bias gradient or None
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

ELSEWHERE = -1
"""A target that counts, but whose column is not in this slice of the vocabulary."""
IGNORED = -2
"""A token without a target: its statistics and gradients are 0. Its hidden state is finite."""


@dataclass(frozen=True)
class Problem:
    """Logits z = softcap(logit_scale · (hidden · weightᵀ + bias)) and the targets among them.

    Attributes:
        hidden: (tokens, dim), of any strides.
        weight: (vocabulary, dim) in the dtype of `hidden`, of any strides.
        targets: (tokens,) int64; a row of `weight`, `ELSEWHERE` or `IGNORED`.
        bias: (vocabulary,), or none.
        sum_weights: (vocabulary,) in `statistics_dtype`: the weights of a wanted sum of logits, or
            none where no sum is wanted.
        logit_scale: multiplies the logits before the cap.
        softcap: c of c · tanh(z / c), or none.
        exact: whether every gradient is computed; see `filter`.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    bias: Tensor | None
    sum_weights: Tensor | None
    logit_scale: float
    softcap: float | None
    exact: bool

    @property
    def tokens(self) -> int:
        return self.hidden.shape[0]

    @property
    def dim(self) -> int:
        return self.hidden.shape[1]

    @property
    def vocabulary(self) -> int:
        return self.weight.shape[0]


class Statistics(NamedTuple):
    """One number a token, in `statistics_dtype`, and 0 where the token is ignored.

    Attributes:
        logsumexp: over the vocabulary.
        target_logit: 0 where the target is elsewhere.
        logit_sum: Σ_v sum_weights_v · z_v, where it is wanted.
        live: (ceil(tokens / 128), ceil(vocabulary / 256)) uint8, the tiles whose gradient is
            computed; none where all are. See `filter`.
    """

    logsumexp: Tensor
    target_logit: Tensor
    logit_sum: Tensor | None
    live: Tensor | None


class Upstream(NamedTuple):
    """Gradients of the loss with respect to the statistics: (tokens,) each."""

    logsumexp: Tensor
    target_logit: Tensor
    logit_sum: Tensor | None

    def of(self, tokens: slice | Tensor) -> "Upstream":
        """Those of some tokens."""
        summed = None if self.logit_sum is None else self.logit_sum[tokens]
        return Upstream(self.logsumexp[tokens], self.target_logit[tokens], summed)


class Needs(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool
