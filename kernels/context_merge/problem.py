"""What an implementation gets and what it gives.

An implementation is a module with one function:

    merge(problem) -> (log_probs (questions, vocabulary), chosen (questions), entropies
    (questions, contexts))

log_probs and entropies in `statistics_dtype`, chosen int64.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Pooling = Literal["min_entropy", "mean", "max", "entropy_weighted"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


@dataclass(frozen=True)
class Problem:
    """The logits of every context, and how they are merged.

    Attributes:
        logits: (questions, contexts, vocabulary), of any strides; rows need not be normalised.
        unconditional: (questions, vocabulary) in the dtype of `logits`, of any strides.
        log_prior: (questions, contexts) in `statistics_dtype`, ln(w / mean w) and −inf for a
            context that takes no part, or none where all weigh the same.
        previous: (questions,) int64, the context chosen a step before, −1 for none; or none.
        beta: how far the unconditional distribution is subtracted; at least −1.
        eta: what the previous context's entropy is lowered by when one is chosen.
        top_p: how much of each row's mass is kept; 1 keeps all.
        pooling: one of `POOLINGS`.
        renormalise_entropy: whether the entropy is that of the kept tokens' own distribution.
    """

    logits: Tensor
    unconditional: Tensor
    log_prior: Tensor | None
    previous: Tensor | None
    beta: float
    eta: float
    top_p: float
    pooling: str
    renormalise_entropy: bool

    @property
    def questions(self) -> int:
        return self.logits.shape[0]

    @property
    def contexts(self) -> int:
        return self.logits.shape[1]

    @property
    def vocabulary(self) -> int:
        return self.logits.shape[2]
