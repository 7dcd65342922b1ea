"""Kernel 3: choice, pooling, and the unconditional distribution taken off.

    t_k = ln p_k where kept, −∞ elsewhere;  P of all t_k;  U = t of the unconditional row
    merged = (1 + β) P − β U where U > −∞, P elsewhere, −∞ where P is

A program has a tile of a question's vocabulary. It writes the merged values and, of its tile, their
maximum and Σ exp(merged − maximum), of which `normalise.py` makes the logsumexp. With the mean all
tokens may be dropped, which no program knows of the others' tiles: so each also writes what holds
in that case, the mean before truncation of what one context keeps.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.context_merge.triton.rows import load_logits
from ropewalk.kernels.context_merge.triton.scores import (
    context_scores,
    entry,
    first_of_least,
    log_softmax,
)

NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def normalised(start, step, about, columns, inside):
    """(ln p of a row's columns, which of them are kept); `about` is the row's line of `rows`.

    What is not below the threshold is kept, so that a row of NaN stays one.
    """
    x = load_logits(start, step, columns, inside)
    log_probability = x - tl.load(about) - tl.load(about + 1)
    below = x < tl.load(about + 2)
    return log_probability, (below == 0) & inside


@triton.jit
def store_merged(merged, part, pooled, unconditional, columns, inside, beta, WITHOUT: tl.constexpr):
    """Takes the unconditional off, and writes values and the tile's sum."""
    if WITHOUT:
        # Where either is −∞ nothing is taken off: β = −1 takes nothing of the pooled row but which
        # tokens there are.
        both = (unconditional != NOTHING) & (pooled != NOTHING)
        off = (1.0 + beta) * tl.where(both, pooled, 0.0) - beta * tl.where(both, unconditional, 0.0)
        value = tl.where(both, off, pooled)
    else:
        value = pooled
    tl.store(merged + columns, value, mask=inside)
    value = tl.where(inside, value, NOTHING)
    maximum = tl.max(value, axis=0)
    from_here = tl.where(maximum == NOTHING, 0.0, maximum)
    tl.store(part, maximum)
    tl.store(part + 1, tl.sum(tl.exp(value - from_here), axis=0))


@triton.jit
def merge_kernel(
    logits, unconditional, rows, entropies, log_prior, previous, merged, parts, otherwise,
    otherwise_parts, chosen, contexts, vocabulary, tiles, beta, eta,
    question_stride, context_stride, token_stride, other_question_stride, other_token_stride,
    COLUMNS: tl.constexpr, CONTEXTS: tl.constexpr, POOLING: tl.constexpr,
    PRIOR: tl.constexpr, PREVIOUS: tl.constexpr, WITHOUT: tl.constexpr,
):  # fmt: skip
    """Programs: questions · tiles of COLUMNS columns, a question's one after the other."""
    question = tl.program_id(0) // tiles
    tile = tl.program_id(0) - question * tiles
    columns = tile * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < vocabulary
    score = context_scores(
        entropies, log_prior, previous, question, contexts, eta, CONTEXTS, PRIOR, PREVIOUS
    )
    choice = first_of_least(score, contexts, CONTEXTS)
    if tile == 0:
        tl.store(chosen + question, choice.to(tl.int64))

    start = logits + question.to(tl.int64) * question_stride
    about = rows + question.to(tl.int64) * (contexts + 1) * 4
    bare = tl.full([COLUMNS], NOTHING, tl.float32)
    if WITHOUT:
        other = unconditional + question.to(tl.int64) * other_question_stride
        log_probability, kept = normalised(
            other, other_token_stride, about + contexts * 4, columns, inside
        )
        bare = tl.where(kept, log_probability, NOTHING)

    here = question.to(tl.int64) * vocabulary
    tile_line = (question.to(tl.int64) * tiles + tile) * 2
    if POOLING == "min_entropy":
        start += choice.to(tl.int64) * context_stride
        log_probability, kept = normalised(start, token_stride, about + choice * 4, columns, inside)
        pooled = tl.where(kept, log_probability, NOTHING)
    else:
        weight = tl.zeros([CONTEXTS], tl.float32)
        place = tl.arange(0, CONTEXTS)
        if PRIOR:
            at = question.to(tl.int64) * contexts + place
            weight = tl.load(log_prior + at, mask=place < contexts, other=NOTHING)
        if POOLING == "mean":
            weight = tl.exp(log_softmax(tl.where(place < contexts, weight, NOTHING)))
        if POOLING == "entropy_weighted":
            weight = log_softmax(-score)
        # −∞ · 0 would be no number: `entry` adds zeros for the others.
        pooled = tl.zeros([COLUMNS], tl.float32)
        if POOLING != "mean":
            pooled += NOTHING
        spare = tl.zeros([COLUMNS], tl.float32)
        total = tl.zeros([COLUMNS], tl.float32)
        any_kept = tl.zeros([COLUMNS], tl.int32)
        for context in range(contexts):
            log_probability, kept = normalised(start, token_stride, about, columns, inside)
            here_weight = entry(weight, context, CONTEXTS)
            truncated = tl.where(kept, log_probability, NOTHING)
            if POOLING == "mean":
                takes_part = here_weight > 0.0
                pooled += here_weight * tl.where(takes_part, truncated, 0.0)
                spare += here_weight * tl.where(takes_part, log_probability, 0.0)
                any_kept = tl.maximum(any_kept, tl.where(takes_part, kept.to(tl.int32), 0))
            if POOLING == "max":
                pooled = tl.maximum(pooled, truncated + here_weight)
            if POOLING == "entropy_weighted":
                addend = truncated + here_weight
                maximum = tl.maximum(pooled, addend)
                from_here = tl.where(maximum == NOTHING, 0.0, maximum)
                total = total * tl.exp(pooled - from_here) + tl.exp(addend - from_here)
                pooled = maximum
            start += context_stride
            about += 4
        if POOLING == "entropy_weighted":
            pooled += tl.log(tl.where(total > 0.0, total, 1.0))
        if POOLING == "mean":
            spare = tl.where(any_kept > 0, spare, NOTHING)
            store_merged(
                otherwise + here, otherwise_parts + tile_line, spare, bare, columns, inside, beta,
                WITHOUT,
            )  # fmt: skip
    store_merged(merged + here, parts + tile_line, pooled, bare, columns, inside, beta, WITHOUT)
