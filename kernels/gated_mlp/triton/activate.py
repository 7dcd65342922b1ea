"""The kernels: activated features of a tile, and the gradient of what they were made of.

    forward    a = act(g) · u                        reads g and u, writes a
    backward   ∂u = ∂a · act(g),  ∂g = ∂a · u · act'(g),  a again if it is wanted
                                                     reads g, u and ∂a, writes ∂g, ∂u and a

A program has a tile of rows and columns; neighbours in a row are neighbours in memory. Numbers are
widened to float32 as they are loaded (Triton's interpreter computes bfloat16 wrongly), and rounded
as they are stored.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.gated_mlp.triton.activation import activate, activate_and_derive


@triton.jit
def _tile(rows, hidden, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows (ROWS, 1) in 64 bits, columns (1, COLUMNS) and which of the tile exist."""
    across = tl.cdiv(hidden, COLUMNS)
    program = tl.program_id(0)
    down = program // across
    row = down.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (program - down * across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return row, column, (row < rows) & (column < hidden)


@triton.jit(do_not_specialize=["rows"])
def activate_kernel(
    projected, activated, rows, hidden, projected_stride,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`projected` (rows, 2·hidden or hidden), `activated` (rows, hidden) contiguous."""
    row, column, inside = _tile(rows, hidden, ROWS, COLUMNS)
    source = projected + row * projected_stride + column
    value = activate(tl.load(source, mask=inside, other=0.0).to(tl.float32), ACTIVATION)
    if GATED:
        value *= tl.load(source + hidden, mask=inside, other=0.0).to(tl.float32)
    target = activated + row * hidden + column
    tl.store(target, value.to(activated.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def activate_backward_kernel(
    projected, activated_grad, projected_grad, activated,
    rows, hidden, projected_stride, activated_grad_stride,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, AGAIN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`projected_grad` and, where AGAIN says that it is wanted, `activated` are contiguous."""
    row, column, inside = _tile(rows, hidden, ROWS, COLUMNS)
    dtype: tl.constexpr = projected_grad.dtype.element_ty
    source = projected + row * projected_stride + column
    upstream = activated_grad + row * activated_grad_stride + column
    grad = tl.load(upstream, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    if GATED:
        up = tl.load(source + hidden, mask=inside, other=0.0).to(tl.float32)
        value, slope = activate_and_derive(gate, ACTIVATION)
        target = projected_grad + row * (2 * hidden) + column
        tl.store(target, (grad * up * slope).to(dtype), mask=inside)
        tl.store(target + hidden, (grad * value).to(dtype), mask=inside)
        value *= up
    else:
        value, slope = activate_and_derive(gate, ACTIVATION)
        tl.store(projected_grad + row * hidden + column, (grad * slope).to(dtype), mask=inside)
    if AGAIN:
        tl.store(activated + row * hidden + column, value.to(dtype), mask=inside)
