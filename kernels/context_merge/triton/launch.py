"""Launches the kernels on logits of any strides: scratch, grids and constants."""

from math import log
from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.context_merge.problem import Problem
from ropewalk.kernels.context_merge.triton.configurations import (
    Configuration,
    configuration,
    row_splits,
)
from ropewalk.kernels.context_merge.triton.merge import merge_kernel
from ropewalk.kernels.context_merge.triton.normalise import normalise_kernel
from ropewalk.kernels.context_merge.triton.statistics import statistics_kernel
from ropewalk.kernels.context_merge.triton.threshold import threshold_kernel
from ropewalk.kernels.launching import run
from ropewalk.kernels.sizes import ceil_divide, power_of_two

UNUSED_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Of float32: those that are zero where a number came from this dtype."""

SLACK = 1e-3
"""Of the greatest distance of a threshold from the maximum, for rounding."""


def unsupported(x: Tensor) -> str | None:
    """Why the kernels cannot run here: what they do runs wherever Triton does."""
    return None


def merge(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Merged log-probabilities, the chosen contexts, and every context's entropy.

    Returns:
        (questions, vocabulary) float32, (questions,) int64, (questions, contexts) float32.
    """
    p, how = problem, configuration(problem.vocabulary)
    tiles = ceil_divide(p.vocabulary, how.columns)
    merged, parts = _float32(p, p.questions, p.vocabulary), _float32(p, p.questions, tiles, 2)
    chosen = p.logits.new_empty(p.questions, dtype=torch.int64)
    if p.questions == 0:
        return merged, chosen, _float32(p, 0, p.contexts)
    rows, entropies = _row_statistics(p, how)
    # What the mean is where no token is left: nobody knows before the end whether one is.
    mean = p.pooling == "mean"
    written = {
        "merged": merged,
        "parts": parts,
        "otherwise": torch.empty_like(merged) if mean else merged,
        "otherwise_parts": torch.empty_like(parts) if mean else parts,
    }
    log_prior = None if p.log_prior is None else p.log_prior.contiguous()
    previous = None if p.previous is None else p.previous.contiguous()
    run(
        merge_kernel,
        (p.questions * tiles,),
        p.logits,
        **_logits(p),
        **written,
        rows=rows,
        entropies=entropies,
        log_prior=log_prior,
        previous=previous,
        chosen=chosen,
        tiles=tiles,
        beta=p.beta,
        eta=p.eta,
        COLUMNS=how.columns,
        CONTEXTS=power_of_two(p.contexts),
        POOLING=p.pooling,
        PRIOR=log_prior is not None,
        PREVIOUS=previous is not None,
        WITHOUT=p.beta != 0.0,
        num_warps=how.merge_warps,
    )
    run(
        normalise_kernel,
        (p.questions * tiles,),
        p.logits,
        **written,
        vocabulary=p.vocabulary,
        tiles=tiles,
        COLUMNS=how.columns,
        PARTS=min(how.parts, power_of_two(tiles)),
        MEAN=mean,
        num_warps=how.merge_warps,
    )
    return merged, chosen, entropies


def _row_statistics(p: Problem, how: Configuration) -> tuple[Tensor, Tensor]:
    """What is known of each row, (rows, 4), and the contexts' entropies (questions, contexts)."""
    blocks, splits = row_splits(p.vocabulary, how)
    count, whole = p.questions * (p.contexts + 1), p.top_p >= 1.0
    maxima = _float32(p, 0 if whole else count, blocks)
    rows, entropies = _float32(p, count, 4), _float32(p, p.questions, p.contexts)
    common: dict[str, Any] = {
        **_logits(p),
        "maxima": maxima,
        "masses": torch.empty_like(maxima),
        "parts": _float32(p, count, splits, 3),
        "blocks": blocks,
        "splits": splits,
        "WIDTH": how.width,
        "WHOLE": whole,
        "SAME_STEP": p.logits.stride(2) == p.unconditional.stride(1),
    }
    run(
        statistics_kernel,
        (count * splits,),
        p.logits,
        **common,
        BLOCKS=how.blocks,
        num_warps=how.statistics_warps,
    )
    run(
        threshold_kernel,
        (count,),
        p.logits,
        **common,
        listed=p.logits.new_empty(maxima.shape, dtype=torch.int32),
        rows=rows,
        entropies=entropies,
        top_p=p.top_p,
        reach=_reach(p),
        SPLITS=power_of_two(splits),
        SHIFT=UNUSED_BITS[p.logits.dtype],
        MAXIMA=how.bound.tile,
        MAXIMA_WAYS=how.bound.ways,
        LOOKS=how.looks,
        FEW=how.few,
        FINE_WAYS=how.fine.ways,
        FINE_BLOCKS=how.fine.tile,
        COARSE_WAYS=how.coarse.ways,
        COARSE_BLOCKS=how.coarse.tile,
        RENORMALISE=p.renormalise_entropy,
        num_warps=how.threshold_warps(count),
    )
    return rows, entropies


def _reach(p: Problem) -> float:
    """How far below a row's maximum the threshold can be.

    What is more than ln(vocabulary / (1 − top_p)) below it has less than 1 − top_p of the mass, all
    of it together.
    """
    return 0.0 if p.top_p >= 1.0 else log(p.vocabulary / (1.0 - p.top_p)) + SLACK


def _logits(p: Problem) -> dict[str, Any]:
    """What kernels that read logits are told about them."""
    question_stride, context_stride, token_stride = p.logits.stride()
    other_question_stride, other_token_stride = p.unconditional.stride()
    return {
        "logits": p.logits,
        "unconditional": p.unconditional,
        "contexts": p.contexts,
        "vocabulary": p.vocabulary,
        "question_stride": question_stride,
        "context_stride": context_stride,
        "token_stride": token_stride,
        "other_question_stride": other_question_stride,
        "other_token_stride": other_token_stride,
    }


def _float32(p: Problem, *shape: int) -> Tensor:
    return p.logits.new_empty(shape, dtype=torch.float32)
