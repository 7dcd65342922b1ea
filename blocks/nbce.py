"""NBCE, naive Bayes context extension: one answer from many contexts that are read apart.

With contexts S_1 … S_n that are independent given the answer T, Bayes' rule gives

    ln p(T | S_1 … S_n) = (β + 1) · P[ln p(T | S)] − β · ln p(T) + const

with P the mean over the contexts and β = n − 1. NBCE takes the context of least entropy as P
instead and β as a free number, because the tails of n distributions are not to be trusted n times
over. A model that was trained on 2k tokens so reads n times 2k, at a cost that is linear in n.

What it cannot do: contexts have no order, and an answer that needs two of them at once is not
found. With one context it is context-aware decoding and classifier-free guidance for text.

Source: Su, kexue.fm/archives/9617 and its supplement 9632. The step itself is the op
`ropewalk.kernels.context_merge`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.blocks.checks import require_number
from ropewalk.kernels.backends import Backend, check_backend
from ropewalk.kernels.context_merge import (
    Merged,
    Pooling,
    PoolingFunction,
    context_merge,
    pool_with,
)
from ropewalk.kernels.context_merge.validation import check_options, check_tensors


class MergeState(NamedTuple):
    """What one step tells about itself, and the next step wants to know.

    Attributes:
        chosen: the context of least entropy after bonus and prior, int64.
        entropies: of every context in nats, before bonus and prior.
    """

    chosen: Int[Tensor, "*questions"]
    entropies: Float[Tensor, "*questions contexts"]


@dataclass(frozen=True)
class ContextMerge:
    """How the next-token distributions under many contexts become one.

    Attributes:
        beta: β ≥ −1, how far the unconditional distribution is taken off. 0 gives the chosen
            context's own distribution, contexts − 1 with pooling="mean" and top_p=1 exact naive
            Bayes.
        eta: η ≥ 0 in nats: the entropy of the context chosen at the step before is lowered by this,
            so that an answer does not hop between contexts.
        top_p: each row is cut to its most likely tokens that hold this share, before anything else;
            in (0, 1], 1 keeps all.
        pooling: "min_entropy", the one for answers that stand in one context, "mean", "max", which
            wants beta=0, or "entropy_weighted" (see
            `ropewalk.kernels.context_merge.context_merge` for their formulas), or a function from
            truncated log-probabilities (*questions, contexts, vocabulary), −∞ where dropped, and
            entropies (*questions, contexts) to (*questions, vocabulary), normalised or not.
        renormalise_entropy: whether what the cut leaves is divided by its sum before its entropy is
            taken. The reference implementation does not.
        backend: "auto", "triton" or "reference"; see `ropewalk.kernels.backends`. A function as
            pooling is computed in torch.

    Raises:
        ValueError: a number out of its range, or an unknown pooling or backend.
        TypeError: a field of the wrong kind.

    Example:
        >>> merge = ContextMerge()
        >>> rows = torch.randn(1 + 5, 1000).log_softmax(-1)  # without context, and under five
        >>> log_probs, state = merge.merge(rows[1:], rows[0])
        >>> log_probs, state = merge.merge(rows[1:], rows[0], previous=state)
        >>> state.chosen.shape, state.entropies.shape
        (torch.Size([]), torch.Size([5]))
    """

    beta: float = 0.25
    eta: float = 0.1
    top_p: float = 0.95
    pooling: Pooling | PoolingFunction = "min_entropy"
    renormalise_entropy: bool = False
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        require_number("ContextMerge", beta=self.beta, eta=self.eta, top_p=self.top_p)
        if not isinstance(self.pooling, str) and not callable(self.pooling):
            raise TypeError(
                "pooling: expected a name or a function of (log_probs, entropies), got "
                f"{type(self.pooling).__name__}"
            )
        check_options(
            beta=self.beta,
            eta=self.eta,
            top_p=self.top_p,
            pooling=self.pooling if isinstance(self.pooling, str) else "mean",
            renormalise_entropy=self.renormalise_entropy,
        )
        check_backend(self.backend)
        if self.backend == "triton" and callable(self.pooling):
            raise ValueError(
                "backend: expected auto or reference where pooling is a function, which is "
                "computed in torch, got 'triton'"
            )

    @classmethod
    def context_aware_decoding(cls, alpha: float = 0.5) -> "ContextMerge":
        """Context-aware decoding with one context: (1 + α) ln p(T | S) − α ln p(T).

        Source: Shi et al., Trusting Your Evidence, arXiv 2305.14739, equation 2.
        """
        return cls(beta=alpha, eta=0.0, top_p=1.0)

    @classmethod
    def classifier_free_guidance(cls, scale: float = 1.5) -> "ContextMerge":
        """Classifier-free guidance for text with one context; `guidance_scale` in transformers.

        ln p(T) + scale · (ln p(T | S) − ln p(T)), which is β = scale − 1. At least 0.

        Source: Sanchez et al., Stay on topic with Classifier-Free Guidance, arXiv 2306.17806.
        """
        require_number("classifier_free_guidance", scale=scale)
        if not scale >= 0.0:
            raise ValueError(f"scale: expected at least 0, got {scale}; 1 is no guidance")
        return cls(beta=scale - 1.0, eta=0.0, top_p=1.0)

    @classmethod
    def naive_bayes(cls, contexts: int) -> "ContextMerge":
        """Exact naive Bayes over a number of contexts: their mean, β = contexts − 1, nothing cut.

        It is exact where contexts are independent given the answer, and degrades as their number
        grows, because it multiplies what the tails of the distributions are wrong by.
        """
        require_number("naive_bayes", contexts=contexts)
        if contexts < 1:
            raise ValueError(f"contexts: expected at least 1, got {contexts}")
        return cls(beta=contexts - 1.0, eta=0.0, top_p=1.0, pooling="mean")

    def merge(
        self,
        log_probs: Float[Tensor, "*questions contexts vocabulary"],
        unconditional: Float[Tensor, "*questions vocabulary"],
        previous: MergeState | None = None,
        *,
        prior: Float[Tensor, "... contexts"] | Sequence[float] | None = None,
    ) -> tuple[Float[Tensor, "*questions vocabulary"], MergeState]:
        """One step: the distribution of the next token, and the state for the step after.

        Args:
            log_probs: of the next token under each context, any float dtype; logits will do, rows
                are normalised.
            unconditional: the same without any context.
            previous: the state that the step before returned, None at the first.
            prior: weights w ≥ 0 of the contexts, such as a retriever's scores, (contexts,) or
                (*questions, contexts); a context twice as heavy is ln 2 nats surer. Weight 0
                leaves it out.

        Returns:
            Normalised log-probabilities, float32 (float64 for float64), −∞ for tokens that cannot
            be, and `MergeState(chosen, entropies)`.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit, no context, or weights below 0.
            TypeError: an argument of the wrong kind.
        """
        if previous is not None and not isinstance(previous, MergeState):
            raise TypeError(
                "previous: expected the MergeState of the step before or None, got "
                f"{type(previous).__name__}"
            )
        check_tensors(log_probs, unconditional, called="log_probs")
        contexts = log_probs.shape[-2]
        if previous is not None and previous.entropies.shape[-1] != contexts:
            raise ValueError(
                f"previous: expected the state of {contexts} contexts, got one of "
                f"{previous.entropies.shape[-1]}; start anew with None where the contexts change"
            )
        if prior is not None and callable(self.pooling):
            raise ValueError(
                "prior: expected None where pooling is a function, which has weights of its own; "
                "let it close over them"
            )
        if prior is not None and not isinstance(prior, Tensor):
            prior = torch.tensor(prior, dtype=torch.float32, device=log_probs.device)
        chosen = None if previous is None else previous.chosen
        if callable(self.pooling):
            merged = pool_with(
                self.pooling, log_probs, unconditional, beta=self.beta, eta=self.eta,
                top_p=self.top_p, renormalise_entropy=self.renormalise_entropy,
                previous=chosen,
            )  # fmt: skip
        else:
            merged = context_merge(
                log_probs, unconditional, beta=self.beta, eta=self.eta, top_p=self.top_p,
                pooling=self.pooling, renormalise_entropy=self.renormalise_entropy,
                previous=chosen, prior=prior, backend=self.backend,
            )  # fmt: skip
        return _taken_apart(merged)


def _taken_apart(merged: Merged) -> tuple[Tensor, MergeState]:
    return merged.log_probs, MergeState(merged.chosen, merged.entropies)
