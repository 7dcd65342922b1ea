"""The forward kernel: gated sum, norm and modulation of a part of one sample's tokens.

The rows of gate, scale and shift stay in registers for all of a program's tokens.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.adaptive_norm.triton.parts import find_part
from ropewalk.kernels.adaptive_norm.triton.tiles import (
    fold,
    load_factor,
    load_offset,
    load_row,
    load_tile,
    store_tile,
)

# Whether these divide by 16 or are 1 changes nothing here, and each case would be compiled anew.
UNSPECIALISED = ("samples", "tokens", "part")


@triton.jit
def load_pair(
    x, branch, row, token, stop,
    x_batch, x_token, x_column, branch_batch, branch_token, branch_column,
    FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """A block of x, and the branch's, or x again where there is none."""
    first = load_tile(x, row, token, stop, x_batch, x_token, x_column, FIRST, BLOCK, DIM)
    second = first
    if branch is not None:
        second = load_tile(
            branch, row, token, stop, branch_batch, branch_token, branch_column, FIRST, BLOCK, DIM
        )
    return first, second


@triton.jit
def new_residual(
    first, second, gate, residual, line,
    FIRST: tl.constexpr, BLOCK: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Writes x + gate · branch; what was written, float32. Without a residual this is x."""
    wide = first.to(tl.float32)
    if residual is not None:
        if gate is not None:
            wide += gate * second.to(tl.float32)
        else:
            wide += second.to(tl.float32)
        rounded = wide.to(residual.dtype.element_ty)
        store_tile(residual, line, rounded, FIRST, BLOCK, DIM)
        wide = rounded.to(tl.float32)
    return wide


@triton.jit(do_not_specialize=UNSPECIALISED)
def forward_kernel(
    x, branch, gate, shift, scale, weight, bias, cu_seqlens, residual, y, mean, rstd,
    samples, tokens, part, eps,
    x_batch, x_token, x_column, branch_batch, branch_token, branch_column,
    gate_row, gate_column, shift_row, shift_column, scale_row, scale_column,
    NORM: tl.constexpr, SEARCHED: tl.constexpr,
    DIM: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    LANES: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """A program has a part of a sample, a token at a time; results are dense."""
    place = tl.program_id(0)
    sample, row, start, stop = find_part(place, cu_seqlens, samples, tokens, part, SEARCHED)
    gate_main, gate_rest = None, None
    if gate is not None:
        gate_main = load_row(gate, sample, gate_row, gate_column, 0, MAIN, DIM)
        if REST > 0:
            gate_rest = load_row(gate, sample, gate_row, gate_column, MAIN, REST, DIM)
    if NORM is not None:
        factor = load_factor(scale, weight, sample, scale_row, scale_column, 0, MAIN, DIM)
        offset = load_offset(
            shift, scale, bias, sample, shift_row, shift_column, scale_row, scale_column,
            0, MAIN, DIM,
        )  # fmt: skip
        if REST > 0:
            factor_rest = load_factor(
                scale, weight, sample, scale_row, scale_column, MAIN, REST, DIM
            )
            offset_rest = load_offset(
                shift, scale, bias, sample, shift_row, shift_column, scale_row, scale_column,
                MAIN, REST, DIM,
            )  # fmt: skip
    x_main, branch_main = load_pair(
        x, branch, row, start, stop, x_batch, x_token, x_column,
        branch_batch, branch_token, branch_column, 0, MAIN, DIM,
    )  # fmt: skip
    if REST > 0:
        x_rest, branch_rest = load_pair(
            x, branch, row, start, stop, x_batch, x_token, x_column,
            branch_batch, branch_token, branch_column, MAIN, REST, DIM,
        )  # fmt: skip
    for step in range((stop - start).to(tl.int32)):
        token = start + step
        # What comes next is on its way while this is computed.
        next_x_main, next_branch_main = load_pair(
            x, branch, row, token + 1, stop, x_batch, x_token, x_column,
            branch_batch, branch_token, branch_column, 0, MAIN, DIM,
        )  # fmt: skip
        if REST > 0:
            next_x_rest, next_branch_rest = load_pair(
                x, branch, row, token + 1, stop, x_batch, x_token, x_column,
                branch_batch, branch_token, branch_column, MAIN, REST, DIM,
            )  # fmt: skip
        line = row * tokens + token
        main = new_residual(x_main, branch_main, gate_main, residual, line, 0, MAIN, DIM)
        if REST > 0:
            rest = new_residual(x_rest, branch_rest, gate_rest, residual, line, MAIN, REST, DIM)
        if NORM is not None:
            if NORM == "layer":
                total = fold(main, MAIN, LANES, VECTOR)
                if REST > 0:
                    total += fold(rest, REST, LANES, VECTOR)
                average = tl.sum(total, axis=0) / DIM
                tl.store(mean + line, average)
                main -= average
                if REST > 0:
                    rest -= average
                    if MAIN + REST > DIM:
                        rest = tl.where(MAIN + tl.arange(0, REST) < DIM, rest, 0.0)
            square = fold(main * main, MAIN, LANES, VECTOR)
            if REST > 0:
                square += fold(rest * rest, REST, LANES, VECTOR)
            inverse = 1.0 / tl.sqrt(tl.sum(square, axis=0) / DIM + eps)
            tl.store(rstd + line, inverse)
            store_tile(y, line, main * inverse * factor + offset, 0, MAIN, DIM)
            if REST > 0:
                store_tile(y, line, rest * inverse * factor_rest + offset_rest, MAIN, REST, DIM)
        x_main, branch_main = next_x_main, next_branch_main
        if REST > 0:
            x_rest, branch_rest = next_x_rest, next_branch_rest
