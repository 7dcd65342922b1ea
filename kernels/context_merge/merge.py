"""`context_merge`: the next-token distributions under many contexts, merged into one."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.kernels.backends import Backend, check_backend
from ropewalk.kernels.context_merge import validation
from ropewalk.kernels.context_merge.op import context_merge_op
from ropewalk.kernels.context_merge.problem import Pooling
from ropewalk.kernels.dtypes import statistics_dtype


class Merged(NamedTuple):
    """The distribution of the next token, and where it comes from.

    Attributes:
        log_probs: normalised, float32 (float64 for float64 logits); −∞ for tokens that cannot be.
        chosen: the context of least entropy after bonus and prior, int64.
        entropies: of every context in nats, before bonus and prior.
    """

    log_probs: Float[Tensor, "*questions vocabulary"]
    chosen: Int[Tensor, "*questions"]
    entropies: Float[Tensor, "*questions contexts"]


def context_merge(
    logits: Float[Tensor, "*questions contexts vocabulary"],
    unconditional: Float[Tensor, "*questions vocabulary"],
    *,
    beta: float = 0.25,
    eta: float = 0.1,
    top_p: float = 0.95,
    pooling: Pooling = "min_entropy",
    renormalise_entropy: bool = False,
    previous: Int[Tensor, "*questions"] | None = None,
    prior: Float[Tensor, "... contexts"] | None = None,
    backend: Backend = "auto",
) -> Merged:
    """One step of NBCE: (1 + β) · P[ln p(T | context)] − β · ln p(T), normalised.

    Each row is normalised and cut to the most likely tokens that hold `top_p` of it: token i stays
    if those more likely than it hold less than `top_p`, so that equals stay or go together. P
    pools over contexts, w_k being their prior weights:

        min_entropy        the row of the context with the least H_k − η · [k = previous] − ln w_k
        mean               Σ_k w_k ln p_k / Σ_k w_k; with β = contexts − 1 and top_p = 1 this is
                           exact naive Bayes. If contexts have no kept token in common, the mean of
                           the rows before they were cut, over the tokens that any of them keeps
        max                max_k ln(w_k p_k)
        entropy_weighted   ln Σ_k ω_k p_k with ω = softmax(−H_k + η · [k = previous] + ln w_k)

    Where the unconditional row, which is cut too, has no such token, P alone is taken.

    No vocabulary is sorted. Arithmetic is float32 (float64 for float64), also for half precision,
    and is the same under `torch.autocast`. It can be differentiated once, in reverse, in logits,
    unconditional and prior, where cut and choice are held constant.

    Args:
        logits: of the next token under each context, float16, bfloat16, float32 or float64, of any
            strides. Log-probabilities will do.
        unconditional: the same without any context.
        beta: β ≥ −1, how far the unconditional distribution is taken off. 0 gives the pooled one.
        eta: η ≥ 0, in nats: what the entropy of the context of the step before is lowered by.
        top_p: in (0, 1]; 1 keeps all tokens.
        pooling: see above.
        renormalise_entropy: H is −Σ p ln p over the tokens that stay; True divides their
            probabilities by their sum first.
        previous: the context chosen at the step before, −1 for none.
        prior: weights w ≥ 0 of the contexts, such as a retriever's scores, for each question or for
            all alike; they are divided by their mean. A context of weight 0 takes no part.
        backend: "auto", "triton" or "reference"; see `ropewalk.kernels.backends`.

    Returns:
        `Merged(log_probs, chosen, entropies)`.

    Raises:
        ValueError: shapes, dtypes, devices or numbers that do not fit; no context; weights below 0
            or all 0; an impossible backend.
        TypeError: an argument of the wrong kind.

    Source: Su, "NBCE", kexue.fm/archives/9617 and its supplement 9632; for text-to-text priors
    "Parallel context-of-experts decoding", arXiv 2601.08670.

    Example:
        >>> rows = torch.randn(2, 1 + 5, 1000)  # two questions: without context, and under five
        >>> merged = context_merge(rows[:, 1:], rows[:, 0])
        >>> merged.log_probs.shape, merged.chosen.shape, merged.entropies.shape
        (torch.Size([2, 1000]), torch.Size([2]), torch.Size([2, 5]))
    """
    validation.check_tensors(logits, unconditional)
    validation.check_options(
        beta=beta, eta=eta, top_p=top_p, pooling=pooling, renormalise_entropy=renormalise_entropy
    )
    validation.check_previous(previous, logits)
    validation.check_prior(prior, logits)
    check_backend(backend)
    *questions, contexts, vocabulary = logits.shape
    log_prior = None
    if prior is not None:
        log_prior = _log_weights(prior.to(statistics_dtype(logits.dtype)))
        log_prior = log_prior.expand(*questions, contexts).reshape(-1, contexts)
    log_probs, chosen, entropies = context_merge_op(
        logits.reshape(-1, contexts, vocabulary),
        unconditional.reshape(-1, vocabulary),
        log_prior,
        None if previous is None else previous.reshape(-1).to(torch.int64),
        float(beta), float(eta), float(top_p), pooling, renormalise_entropy, backend,
    )  # fmt: skip
    return Merged(
        log_probs.reshape(*questions, vocabulary),
        chosen.reshape(questions),
        entropies.reshape(*questions, contexts),
    )


def _log_weights(prior: Tensor) -> Tensor:
    """The logarithm of weights over their mean; no gradient comes from those that are 0."""
    nothing = prior <= 0
    relative = prior / prior.mean(-1, keepdim=True)
    return relative.masked_fill(nothing, 1.0).log().masked_fill(nothing, float("-inf"))
