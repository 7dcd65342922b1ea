"""Backward: the probabilities again from the logsumexp, then the gradients of each branch.

    p_ij = exp(s_ij − lse_i),  dv_j = Σ_i p_ij do_i
    ds_ij = p_ij (⟨do_i, v_j⟩ − Δ_i) · slope_ij,  Δ_i = ⟨do_i, o_i⟩ − dlse_i
    dq_i = scale · Σ_j ds_ij k_j,  dk_j = scale · Σ_i ds_ij q_i

(FlashAttention-2, arXiv 2307.08691, §3.1.2.) A pair belongs to one branch and its probability needs
that branch's score only, so each branch is a backward of its own, in programs of its own:
query_gradient.py takes a block of queries and walks keys, key_gradient.py a block of keys and walks
the queries of every head that shares them. Both write the gradients of the *rotated* queries and
keys of each branch; turn.py rotates them back and adds them up. This file holds what both need.
"""

import triton
import triton.language as tl

from ropewalk.kernels.rotary_attention.triton.pairs import add_mask, cap_scores

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def delta_kernel(
    output, grad_output, grad_logsumexp, delta, total, grad_batch, grad_head, grad_row,
    heads, queries, VALUE_DIM: tl.constexpr, VALUE_BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Δ of every row; programs: blocks of rows of (batch · heads · queries). `output` is dense."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = rows < total
    dims = tl.arange(0, VALUE_BLOCK)
    inside = here[:, None] & (dims < VALUE_DIM)[None, :]
    head_index = rows // queries
    grad_at = (head_index // heads) * grad_batch + (head_index % heads) * grad_head
    grad_at += (rows % queries) * grad_row
    out = tl.load(output + rows[:, None] * VALUE_DIM + dims[None, :], mask=inside, other=0.0)
    grad = tl.load(grad_output + grad_at[:, None] + dims[None, :], mask=inside, other=0.0)
    sums = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    sums -= tl.load(grad_logsumexp + rows, mask=here, other=0.0)
    tl.store(delta + rows, sums, mask=here)


@triton.jit
def load_statistics(logsumexp, delta, first, here, ROWS: tl.constexpr,
                    CHECKED: tl.constexpr):  # fmt: skip
    """Logsumexp in base 2, and Δ, of consecutive rows from `first` on."""
    at = first.to(tl.int64) + tl.arange(0, ROWS)
    if CHECKED:
        lse = tl.load(logsumexp + at, mask=here, other=0.0)
        row_delta = tl.load(delta + at, mask=here, other=0.0)
    else:
        lse = tl.load(logsumexp + at)
        row_delta = tl.load(delta + at)
    # Rows that see nothing must get exp2(−∞ − 0) = 0, not NaN.
    return tl.where(lse == float("-inf"), 0.0, lse * LOG2_E), row_delta


@triton.jit
def probabilities(
    scores, lse, scale, cap, least, mask, rows, columns, mask_row, mask_column, within,
    CAP: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """exp(scores − lse) and the slope of the cap, from plain dot products.

    `lse` is in base 2 and broadcasts against the tile, as `rows` and `columns` do.
    """
    slope = 1.0
    if CAP or MASK:
        scores = scores * scale
        if CAP:
            scores = cap_scores(scores, cap)
            slope = 1.0 - (scores / cap) * (scores / cap)
        if MASK:
            scores = add_mask(
                scores, mask, rows, columns, mask_row, mask_column, within, MASK == 1, least
            )
        scores = scores * LOG2_E
    else:
        scores = scores * (scale * LOG2_E)
    return tl.exp2(scores - lse), slope
