"""What is refused, and in which words: expected, got, and how to mend it."""

import math

import torch
from torch import Tensor

from ropewalk.kernels.context_merge.problem import POOLINGS

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(logits: Tensor, unconditional: Tensor, *, called: str = "logits") -> None:
    """Kinds, ranks, sizes, dtypes and devices of both; the first is `called` so by the caller."""
    for name, x in ((called, logits), ("unconditional", unconditional)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
        if x.dtype not in DTYPES:
            raise ValueError(f"{name}: expected a floating-point dtype, got {x.dtype}")
    if logits.ndim < 2:
        raise ValueError(
            f"{called}: expected (..., contexts, vocabulary), got {tuple(logits.shape)}; a single "
            f"context needs a dimension of its own, {called}[None]"
        )
    if logits.shape[-2] == 0:
        raise ValueError(
            f"{called}: expected at least one context, got {tuple(logits.shape)}; without any, "
            "`unconditional` is the answer"
        )
    if logits.shape[-1] == 0:
        raise ValueError(f"{called}: expected a vocabulary, got {tuple(logits.shape)}")
    shape = (*logits.shape[:-2], logits.shape[-1])
    if unconditional.shape != shape:
        raise ValueError(
            f"unconditional: expected {tuple(shape)}, that of {called} without its contexts, got "
            f"{tuple(unconditional.shape)}"
        )
    if unconditional.dtype != logits.dtype or unconditional.device != logits.device:
        raise ValueError(
            f"unconditional: expected {logits.dtype} on {logits.device} as {called} is, got "
            f"{unconditional.dtype} on {unconditional.device}; use .to({called})"
        )


def check_options(
    *, beta: float, eta: float, top_p: float, pooling: str, renormalise_entropy: bool
) -> None:
    """Numbers in their ranges, and a pooling that exists."""
    for name, number in (("beta", beta), ("eta", eta), ("top_p", top_p)):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise TypeError(f"{name}: expected a number, got {type(number).__name__}")
    # Comparisons that NaN fails too.
    if not -1.0 <= beta < math.inf:
        raise ValueError(
            f"beta: expected a finite number of at least −1, got {beta}; 0 leaves the "
            "unconditional distribution out, 0.25 is usual"
        )
    if not 0.0 <= eta < math.inf:
        raise ValueError(f"eta: expected a finite number of at least 0, in nats, got {eta}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p: expected 0 < top_p ≤ 1, where 1 keeps all, got {top_p}")
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
    if not isinstance(renormalise_entropy, bool):
        raise TypeError(
            f"renormalise_entropy: expected True or False, got {type(renormalise_entropy).__name__}"
        )


def check_previous(previous: Tensor | None, logits: Tensor) -> None:
    """One context a question."""
    if previous is None:
        return
    if not isinstance(previous, Tensor):
        raise TypeError(f"previous: expected a tensor or None, got {type(previous).__name__}")
    if previous.dtype.is_floating_point or previous.dtype in (torch.bool, torch.complex64):
        raise ValueError(
            f"previous: expected integers, −1 for none, got {previous.dtype}; use .long()"
        )
    if previous.shape != logits.shape[:-2] or previous.device != logits.device:
        raise ValueError(
            f"previous: expected {tuple(logits.shape[:-2])} on {logits.device}, a context for each "
            f"question, got {tuple(previous.shape)} on {previous.device}"
        )


def check_prior(prior: Tensor | None, logits: Tensor) -> None:
    """Weights for every context of a question, or of all questions alike."""
    if prior is None:
        return
    if not isinstance(prior, Tensor):
        raise TypeError(f"prior: expected a tensor or None, got {type(prior).__name__}")
    expected = logits.shape[:-1]
    fits = prior.ndim <= len(expected) and all(
        have in (1, want)
        for have, want in zip(reversed(prior.shape), reversed(expected), strict=False)
    )
    if not prior.dtype.is_floating_point or not fits or prior.shape[-1:] != expected[-1:]:
        raise ValueError(
            f"prior: expected floating-point weights {tuple(expected)}, or ({expected[-1]},) for "
            f"all questions alike, got {tuple(prior.shape)} {prior.dtype}"
        )
    if prior.device != logits.device:
        raise ValueError(
            f"prior: expected on {logits.device} as logits is, got {prior.device}; move it there"
        )
    if torch.compiler.is_compiling() or prior.is_meta:
        return  # values are not there to be looked at
    weights = prior.detach()
    if not bool(((weights >= 0) & weights.isfinite()).all()) or not bool(
        (weights.amax(-1) > 0).all()
    ):
        raise ValueError(
            "prior: expected finite weights of at least 0, not all of them 0, got "
            f"{weights.tolist()}; scores of a retriever that may be negative can be passed as "
            "scores.softmax(-1)"
        )
