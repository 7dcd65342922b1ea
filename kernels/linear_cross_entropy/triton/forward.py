"""Launches of the forward: statistics of every token, some tokens at a time.

What is held beside the results are a tile's parts of the sums, `WORKSPACE` bytes at most: one
float32 number for each token and tile of columns, or two where tiles are to be skipped later.
"""

import torch
from torch import Tensor

from ropewalk.kernels.launching import run
from ropewalk.kernels.linear_cross_entropy.chunks import spans
from ropewalk.kernels.linear_cross_entropy.filter import (
    FILTER_COLUMNS,
    FILTER_TOKENS,
    log_resolution,
    map_shape,
)
from ropewalk.kernels.linear_cross_entropy.problem import Problem, Statistics
from ropewalk.kernels.linear_cross_entropy.triton.configurations import Configuration
from ropewalk.kernels.linear_cross_entropy.triton.layout import Matrix, matrix
from ropewalk.kernels.linear_cross_entropy.triton.logits import (
    logits_arguments,
    logits_configuration,
    programs,
)
from ropewalk.kernels.linear_cross_entropy.triton.sizes import statistics_tokens
from ropewalk.kernels.linear_cross_entropy.triton.statistics import (
    live_kernel,
    merge_kernel,
    statistics_kernel,
)
from ropewalk.kernels.sizes import ceil_divide

MERGED_TOKENS, MERGED_TILES = 32, 32
"""Of a program of `merge_kernel`: a row of parts is a line of memory."""
MARKED_TILES = 8
"""Tiles of the map that a program of `live_kernel` decides about."""


def statistics(problem: Problem) -> Statistics:
    """logsumexp, the target's logit and Σ s_v z_v of each token, float32; see `Statistics`."""
    p = problem
    empty = p.hidden.new_empty(p.tokens, dtype=torch.float32)
    live_shape = map_shape(p.tokens, p.vocabulary)
    found = Statistics(
        empty,
        torch.zeros_like(empty),  # written only by the tile that holds the target
        None if p.sum_weights is None else torch.empty_like(empty),
        None if p.exact else p.hidden.new_empty(live_shape, dtype=torch.uint8),
    )
    if p.tokens == 0:
        return found
    hidden, weight = matrix(p.hidden), matrix(p.weight)
    how = logits_configuration("statistics", hidden, weight)
    tiles = ceil_divide(p.vocabulary, how.columns)
    parts = 1 + (not p.exact) + (p.sum_weights is not None)
    chunk = statistics_tokens(p.tokens, tiles, parts)
    scratch = empty.new_empty(parts, tiles * min(chunk, p.tokens))
    for start, end in spans(p.tokens, chunk):
        _some_tokens(p, hidden, weight, found, list(scratch), start, end, how)
    return found


def _some_tokens(
    problem: Problem,
    hidden: Matrix,
    weight: Matrix,
    found: Statistics,
    scratch: list[Tensor],
    start: int,
    end: int,
    how: Configuration,
) -> None:
    """Writes the statistics of tokens `start` to `end`."""
    p, tiles = problem, ceil_divide(problem.vocabulary, how.columns)
    targets, logsumexp = p.targets[start:end].contiguous(), found.logsumexp[start:end]
    parts = scratch.pop()
    greatest = None if p.exact else scratch.pop()
    sums = None if p.sum_weights is None else scratch.pop()
    logit_sum = None if found.logit_sum is None else found.logit_sum[start:end]
    arguments = logits_arguments(
        p, hidden.rows(start, end), weight, targets, p.bias, p.sum_weights, how
    )
    run(
        statistics_kernel,
        programs(how, end - start, p.vocabulary),
        p.hidden,
        **arguments,
        parts=parts,
        greatest=greatest,
        sums=sums,
        target_logit=found.target_logit[start:end],
        GREATEST=greatest is not None,
    )
    run(
        merge_kernel,
        (ceil_divide(end - start, MERGED_TOKENS),),
        p.hidden,
        parts=parts,
        sums=sums,
        targets=targets,
        logsumexp=logsumexp,
        logit_sum=logit_sum,
        tokens=end - start,
        tiles=tiles,
        TOKENS=MERGED_TOKENS,
        TILES=MERGED_TILES,
        SUM=sums is not None,
        num_warps=4,
    )
    if found.live is None:
        return
    map_tiles = found.live.shape[1]
    run(
        live_kernel,
        (ceil_divide(end - start, FILTER_TOKENS), ceil_divide(map_tiles, MARKED_TILES)),
        p.hidden,
        greatest=greatest,
        logsumexp=logsumexp,
        targets=targets,
        live=found.live[start // FILTER_TOKENS :],
        tokens=end - start,
        tiles=tiles,
        map_tiles=map_tiles,
        log_resolution=log_resolution(p.hidden.dtype),
        TOKENS=FILTER_TOKENS,
        FILTER_COLUMNS=FILTER_COLUMNS,
        COLUMNS=how.columns,
        TILES=MARKED_TILES,
        num_warps=4,
    )
