"""The backward kernel: gradients of the streams, and sums over a part of one sample's tokens.

    x̂ = (residual − mean) · rstd,   g = dy · weight · (1 + scale)
    dr = rstd · (g − mean(g) − x̂ · mean(g · x̂)) + the residual's own gradient
    dx = dr,   dbranch = gate · dr
    sums over tokens: dy · x̂, dy and dr · branch

mean(g) and the mean are left out for the root mean square. Sums are kept in registers, and every
part writes its own row of each. All means are of one token; those sums over tokens that nobody
wants are not computed.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.adaptive_norm.triton.parts import find_part
from ropewalk.kernels.adaptive_norm.triton.tiles import (
    add_pairs,
    fold,
    load_factor,
    load_row,
    load_tile,
    store_tile,
)

UNSPECIALISED = ("samples", "tokens", "part")


@triton.jit
def load_all(
    residual, branch, residual_grad, y_grad, row, token, stop,
    residual_batch, residual_token, residual_column, branch_batch, branch_token, branch_column,
    residual_grad_batch, residual_grad_token, residual_grad_column,
    y_grad_batch, y_grad_token, y_grad_column,
    FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """A block of each; those that are not there are a number that nobody reads."""
    seen, added, own, upstream = 0, 0, 0, 0
    if residual is not None:
        seen = load_tile(
            residual, row, token, stop, residual_batch, residual_token, residual_column,
            FIRST, BLOCK, DIM,
        )  # fmt: skip
    if branch is not None:
        added = load_tile(
            branch, row, token, stop, branch_batch, branch_token, branch_column, FIRST, BLOCK, DIM
        )
    if residual_grad is not None:
        own = load_tile(
            residual_grad, row, token, stop, residual_grad_batch, residual_grad_token,
            residual_grad_column, FIRST, BLOCK, DIM,
        )  # fmt: skip
    if y_grad is not None:
        upstream = load_tile(
            y_grad, row, token, stop, y_grad_batch, y_grad_token, y_grad_column, FIRST, BLOCK, DIM
        )
    return seen, added, own, upstream


@triton.jit
def load_statistics(mean, rstd, row, token, stop, tokens):
    """Of a token, float32."""
    line = row * tokens + token
    average, inverse = 0.0, 0.0
    if mean is not None:
        average = tl.load(mean + line, mask=token < stop, other=0.0)
    if rstd is not None:
        inverse = tl.load(rstd + line, mask=token < stop, other=0.0)
    return average, inverse


@triton.jit
def normed_values(seen, average, inverse, LAYER: tl.constexpr):
    """The values x̂ of a block, and something else past DIM, where the gradient is zero."""
    values = seen.to(tl.float32)
    if LAYER:
        values -= average
    return values * inverse


@triton.jit
def store_sum(
    partial, place, index, total, FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
    SUMS: tl.constexpr,
):  # fmt: skip
    """Writes one part's sum of a block to (place, sum, dim)."""
    column = FIRST + tl.arange(0, BLOCK)
    at = (place.to(tl.int64) * SUMS + index) * DIM + column
    tl.store(partial + at, total, mask=column < DIM)


@triton.jit(do_not_specialize=UNSPECIALISED)
def backward_kernel(
    residual, branch, residual_grad, y_grad, gate, scale, weight, cu_seqlens, mean, rstd,
    x_grad, branch_grad, partial,
    samples, tokens, part,
    residual_batch, residual_token, residual_column, branch_batch, branch_token, branch_column,
    residual_grad_batch, residual_grad_token, residual_grad_column,
    y_grad_batch, y_grad_token, y_grad_column,
    gate_row, gate_column, scale_row, scale_column,
    NORMED: tl.constexpr, LAYER: tl.constexpr,
    ALONG: tl.constexpr, STRAIGHT: tl.constexpr, GATE: tl.constexpr, SEARCHED: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """A program has a part of a sample; results are dense. ALONG, STRAIGHT and GATE: which sums."""
    SUMS: tl.constexpr = ALONG + STRAIGHT + GATE
    place = tl.program_id(0)
    sample, row, start, stop = find_part(place, cu_seqlens, samples, tokens, part, SEARCHED)
    if branch_grad is not None:
        gate_main = load_row(gate, sample, gate_row, gate_column, 0, MAIN, DIM)
        if REST > 0:
            gate_rest = load_row(gate, sample, gate_row, gate_column, MAIN, REST, DIM)
    if NORMED:
        factor = load_factor(scale, weight, sample, scale_row, scale_column, 0, MAIN, DIM)
        if REST > 0:
            factor_rest = load_factor(
                scale, weight, sample, scale_row, scale_column, MAIN, REST, DIM
            )
    along = tl.zeros((MAIN if ALONG else 1,), tl.float32)
    straight = tl.zeros((MAIN if STRAIGHT else 1,), tl.float32)
    gated = tl.zeros((MAIN if GATE else 1,), tl.float32)
    along_rest = tl.zeros((REST if ALONG and REST > 0 else 1,), tl.float32)
    straight_rest = tl.zeros((REST if STRAIGHT and REST > 0 else 1,), tl.float32)
    gated_rest = tl.zeros((REST if GATE and REST > 0 else 1,), tl.float32)
    seen, added, own, upstream = load_all(
        residual, branch, residual_grad, y_grad, row, start, stop,
        residual_batch, residual_token, residual_column, branch_batch, branch_token, branch_column,
        residual_grad_batch, residual_grad_token, residual_grad_column,
        y_grad_batch, y_grad_token, y_grad_column, 0, MAIN, DIM,
    )  # fmt: skip
    if REST > 0:
        seen_rest, added_rest, own_rest, upstream_rest = load_all(
            residual, branch, residual_grad, y_grad, row, start, stop,
            residual_batch, residual_token, residual_column,
            branch_batch, branch_token, branch_column,
            residual_grad_batch, residual_grad_token, residual_grad_column,
            y_grad_batch, y_grad_token, y_grad_column, MAIN, REST, DIM,
        )  # fmt: skip
    average, inverse = load_statistics(mean, rstd, row, start, stop, tokens)
    for step in range((stop - start).to(tl.int32)):
        token = start + step
        # What comes next is on its way while this is computed.
        next_seen, next_added, next_own, next_upstream = load_all(
            residual, branch, residual_grad, y_grad, row, token + 1, stop,
            residual_batch, residual_token, residual_column,
            branch_batch, branch_token, branch_column,
            residual_grad_batch, residual_grad_token, residual_grad_column,
            y_grad_batch, y_grad_token, y_grad_column, 0, MAIN, DIM,
        )  # fmt: skip
        if REST > 0:
            next_seen_rest, next_added_rest, next_own_rest, next_upstream_rest = load_all(
                residual, branch, residual_grad, y_grad, row, token + 1, stop,
                residual_batch, residual_token, residual_column,
                branch_batch, branch_token, branch_column,
                residual_grad_batch, residual_grad_token, residual_grad_column,
                y_grad_batch, y_grad_token, y_grad_column, MAIN, REST, DIM,
            )  # fmt: skip
        next_average, next_inverse = load_statistics(mean, rstd, row, token + 1, stop, tokens)
        line = row * tokens + token
        if NORMED:
            normed = normed_values(seen, average, inverse, LAYER)
            grad = upstream.to(tl.float32)
            if ALONG:
                along += grad * normed
            if STRAIGHT:
                straight += grad
            grad *= factor
            projection = fold(grad * normed, MAIN, LANES, VECTOR)
            if LAYER:
                level = fold(grad, MAIN, LANES, VECTOR)
            if REST > 0:
                normed_rest = normed_values(seen_rest, average, inverse, LAYER)
                grad_rest = upstream_rest.to(tl.float32)
                if ALONG:
                    along_rest += grad_rest * normed_rest
                if STRAIGHT:
                    straight_rest += grad_rest
                grad_rest *= factor_rest
                projection += fold(grad_rest * normed_rest, REST, LANES, VECTOR)
                if LAYER:
                    level += fold(grad_rest, REST, LANES, VECTOR)
            if LAYER:
                projection, level = tl.reduce((projection, level), 0, add_pairs)
                level /= DIM
                grad -= level
            else:
                projection = tl.sum(projection, axis=0)
            projection /= DIM
            grad -= normed * projection
            whole = grad * inverse
            if residual_grad is not None:
                whole += own.to(tl.float32)
            if REST > 0:
                grad_rest -= normed_rest * projection
                if LAYER:
                    grad_rest -= level
                whole_rest = grad_rest * inverse
                if residual_grad is not None:
                    whole_rest += own_rest.to(tl.float32)
        else:
            whole = own.to(tl.float32)
            if REST > 0:
                whole_rest = own_rest.to(tl.float32)
        if x_grad is not None:
            store_tile(x_grad, line, whole, 0, MAIN, DIM)
            if REST > 0:
                store_tile(x_grad, line, whole_rest, MAIN, REST, DIM)
        if branch_grad is not None:
            store_tile(branch_grad, line, whole * gate_main, 0, MAIN, DIM)
            if REST > 0:
                store_tile(branch_grad, line, whole_rest * gate_rest, MAIN, REST, DIM)
        if GATE:
            gated += whole * added.to(tl.float32)
            if REST > 0:
                gated_rest += whole_rest * added_rest.to(tl.float32)
        seen, added, own, upstream = next_seen, next_added, next_own, next_upstream
        average, inverse = next_average, next_inverse
        if REST > 0:
            seen_rest, added_rest = next_seen_rest, next_added_rest
            own_rest, upstream_rest = next_own_rest, next_upstream_rest
    # A place that has no tokens is not read either.
    if SUMS > 0 and start < stop:
        if ALONG:
            store_sum(partial, place, 0, along, 0, MAIN, DIM, SUMS)
            if REST > 0:
                store_sum(partial, place, 0, along_rest, MAIN, REST, DIM, SUMS)
        if STRAIGHT:
            store_sum(partial, place, ALONG, straight, 0, MAIN, DIM, SUMS)
            if REST > 0:
                store_sum(partial, place, ALONG, straight_rest, MAIN, REST, DIM, SUMS)
        if GATE:
            store_sum(partial, place, ALONG + STRAIGHT, gated, 0, MAIN, DIM, SUMS)
            if REST > 0:
                store_sum(partial, place, ALONG + STRAIGHT, gated_rest, MAIN, REST, DIM, SUMS)
