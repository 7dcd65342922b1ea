"""Rotation of queries or keys to the positions of every branch, and the transpose for gradients.

    out_b = λ · R^{p_b} x                      `turn`
    x̄     = λ · Σ_b (R^{p_b})ᵀ x̄_b            `turn_back`

λ is a factor for each row (log n scaling), and the rotated dimensions are multiplied by another
factor. Angles are computed here from positions and inverse frequencies, so that no table of cosines
is written or read. All of it is linear in the length, where the attention is quadratic.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ropewalk.kernels.rotary_attention.triton.angles import sine_cosine
from ropewalk.kernels.sizes import ceil_divide, power_of_two

HEADS_TOGETHER = 4


@triton.jit
def turning(
    positions, branch, position_branch, position_batch, inverse_frequencies, factor, row_factor,
    row_batch, batch, rows, here, PAIRS: tl.constexpr, PAIR_BLOCK: tl.constexpr,
    FACTOR: tl.constexpr, ROW_FACTOR: tl.constexpr,
):  # fmt: skip
    """(sin, cos, λ) of a block of rows in a branch; sin and cos with both factors."""
    pairs = tl.arange(0, PAIR_BLOCK)
    frequencies = tl.load(inverse_frequencies + pairs, mask=pairs < PAIRS, other=0.0)
    place = tl.load(
        positions + branch * position_branch + batch * position_batch + rows, mask=here, other=0.0
    )
    sine, cosine = sine_cosine(place[:, None] * frequencies[None, :])
    scale = tl.full([1, 1], 1.0, tl.float32)
    if ROW_FACTOR:
        scale = tl.load(row_factor + batch * row_batch + rows, mask=here, other=0.0)[:, None]
    magnitude = scale * tl.load(factor) if FACTOR else scale
    return sine * magnitude, cosine * magnitude, scale


@triton.jit
def columns_of(
    here, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr, PAIR_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Dimensions of the first and second of each pair and of the rest, and which exist."""
    pairs = tl.arange(0, PAIR_BLOCK)
    inside = here[:, None] & (pairs < PAIRS)[None, :]
    first = 2 * pairs[None, :] if INTERLEAVED else pairs[None, :]
    second = first + 1 if INTERLEAVED else first + PAIRS
    rest = 2 * PAIRS + tl.arange(0, REST_BLOCK)[None, :]
    return first, second, inside, rest, here[:, None] & (rest < HEAD_DIM)


@triton.jit
def turn_kernel(
    x, turned, positions, inverse_frequencies, factor, row_factor,
    x_batch, x_head, x_row, turned_branch, turned_batch, turned_head, turned_row,
    position_branch, position_batch, row_batch, heads, length,
    BRANCHES: tl.constexpr, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    PAIR_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr, ROWS: tl.constexpr,
    HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, FACTOR: tl.constexpr,
    ROW_FACTOR: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of rows, groups of heads, batch). A group shares the angles of a branch."""
    batch = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < length
    first, second, inside, rest, beside = columns_of(
        here, HEAD_DIM, PAIRS, PAIR_BLOCK, REST_BLOCK, INTERLEAVED
    )
    dtype = turned.dtype.element_ty
    for branch in range(0, BRANCHES):
        sine, cosine, scale = turning(
            positions, branch, position_branch, position_batch, inverse_frequencies, factor,
            row_factor, row_batch, batch, rows, here, PAIRS, PAIR_BLOCK, FACTOR, ROW_FACTOR,
        )  # fmt: skip
        for index in range(0, HEADS):
            head = (tl.program_id(1) * HEADS + index).to(tl.int64)
            if head < heads:
                x_at = x + batch * x_batch + head * x_head + rows.to(tl.int64)[:, None] * x_row
                a = tl.load(x_at + first, mask=inside, other=0.0).to(tl.float32)
                b = tl.load(x_at + second, mask=inside, other=0.0).to(tl.float32)
                kept = tl.load(x_at + rest, mask=beside, other=0.0).to(tl.float32)
                at = turned + batch * turned_batch + head * turned_head
                at += rows.to(tl.int64)[:, None] * turned_row
                tl.store(at + first, (a * cosine - b * sine).to(dtype), mask=inside)
                tl.store(at + second, (b * cosine + a * sine).to(dtype), mask=inside)
                tl.store(at + rest, (kept * scale).to(dtype), mask=beside)
        # Step by step, because the number of a branch times its stride may not fit 32 bits.
        turned += turned_branch


@triton.jit
def turn_back_kernel(
    x, turned, positions, inverse_frequencies, factor, row_factor,
    x_batch, x_head, x_row, turned_branch, turned_batch, turned_head, turned_row,
    position_branch, position_batch, row_batch, heads, length,
    BRANCHES: tl.constexpr, HEAD_DIM: tl.constexpr, PAIRS: tl.constexpr,
    PAIR_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr, ROWS: tl.constexpr,
    HEADS: tl.constexpr, INTERLEAVED: tl.constexpr, FACTOR: tl.constexpr,
    ROW_FACTOR: tl.constexpr,
):  # fmt: skip
    """Programs: (blocks of rows, groups of heads, batch); HEADS is 1. Sums over the branches."""
    batch = tl.program_id(2).to(tl.int64)
    head = (tl.program_id(1) * HEADS).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = rows < length
    first, second, inside, rest, beside = columns_of(
        here, HEAD_DIM, PAIRS, PAIR_BLOCK, REST_BLOCK, INTERLEAVED
    )
    a_sum = tl.zeros([ROWS, PAIR_BLOCK], tl.float32)
    b_sum = tl.zeros([ROWS, PAIR_BLOCK], tl.float32)
    rest_sum = tl.zeros([ROWS, REST_BLOCK], tl.float32)
    at = turned + batch * turned_batch + head * turned_head
    at += rows.to(tl.int64)[:, None] * turned_row
    for branch in range(0, BRANCHES):
        sine, cosine, scale = turning(
            positions, branch, position_branch, position_batch, inverse_frequencies, factor,
            row_factor, row_batch, batch, rows, here, PAIRS, PAIR_BLOCK, FACTOR, ROW_FACTOR,
        )  # fmt: skip
        a = tl.load(at + first, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(at + second, mask=inside, other=0.0).to(tl.float32)
        kept = tl.load(at + rest, mask=beside, other=0.0).to(tl.float32)
        a_sum += a * cosine + b * sine
        b_sum += b * cosine - a * sine
        rest_sum += kept * scale
        at += turned_branch
    dtype = x.dtype.element_ty
    x_at = x + batch * x_batch + head * x_head + rows.to(tl.int64)[:, None] * x_row
    tl.store(x_at + first, a_sum.to(dtype), mask=inside)
    tl.store(x_at + second, b_sum.to(dtype), mask=inside)
    tl.store(x_at + rest, rest_sum.to(dtype), mask=beside)


def turn(x: Tensor, turned: Tensor, positions: Tensor, inverse_frequencies: Tensor,
         factor: Tensor | None, row_factor: Tensor | None, *, interleaved: bool,
         back: bool) -> None:  # fmt: skip
    """Writes `turned` from `x`, or with `back` x from `turned`.

    Args:
        x: (batch, heads, length, head_dim), last dimension contiguous.
        turned: (branches, batch, heads, length, head_dim), last dimension contiguous.
        positions: float32 (branches, 1 | batch, length), last dimension contiguous.
        inverse_frequencies: float32 (pairs,).
        factor: float32 scalar on the rotated dimensions.
        row_factor: float32 (1 | batch, length) on all dimensions.
        interleaved: which dimensions are pairs.
        back: the transpose.
    """
    batch, heads, length, head_dim = x.shape
    if x.numel() == 0:
        return
    pairs = inverse_frequencies.shape[0]
    pair_block = power_of_two(max(pairs, 1))
    rows = max(8, 1024 // max(pair_block, 16))
    together = 1 if back else min(HEADS_TOGETHER, heads)
    grid = (ceil_divide(length, rows), ceil_divide(heads, together), batch)
    kernel: Any = turn_back_kernel if back else turn_kernel
    kernel[grid](
        x, turned, positions, inverse_frequencies, factor, row_factor,
        x.stride(0), x.stride(1), x.stride(2),
        turned.stride(0), turned.stride(1), turned.stride(2), turned.stride(3),
        positions.stride(0), positions.stride(1) if positions.shape[1] > 1 else 0,
        0 if row_factor is None or row_factor.shape[0] == 1 else row_factor.stride(0),
        heads, length,
        BRANCHES=turned.shape[0], HEAD_DIM=head_dim, PAIRS=pairs, PAIR_BLOCK=pair_block,
        REST_BLOCK=power_of_two(max(head_dim - 2 * pairs, 1)), ROWS=rows, HEADS=together,
        INTERLEAVED=interleaved, FACTOR=factor is not None, ROW_FACTOR=row_factor is not None,
        # Left alone, the assembler spills a little to fit more programs than memory can feed.
        num_warps=4, maxnreg=128 if head_dim == 2 * pairs else 168,
    )  # fmt: skip


def empty_turned(x: Tensor, branches: int) -> Tensor:
    """Contiguous room for `x` rotated to so many branches."""
    return torch.empty((branches, *x.shape), dtype=x.dtype, device=x.device)
