"""Launches of the products of blocks, on tensors of any strides."""

from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.launching import arithmetic, run
from ropewalk.kernels.monarch.triton.configurations import Sizes, configuration, token_parts
from ropewalk.kernels.monarch.triton.layout import awkward, readable
from ropewalk.kernels.monarch.triton.outer import outer_kernel
from ropewalk.kernels.monarch.triton.product import product_kernel
from ropewalk.kernels.sizes import ceil_divide


class Upstream(NamedTuple):
    """What a product's pre-activation is computed again for.

    Attributes:
        y_grad: (tokens, blocks, columns).
        bias_grad: whether it is to be summed over tokens.
    """

    y_grad: Tensor
    bias_grad: bool


def product(
    x: Tensor,
    factor: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    upstream: Upstream | None = None,
) -> Tensor | None:
    """Writes every block's product into `out`; see product.py.

    Args:
        x: (tokens, blocks, features).
        factor: (blocks, columns, features).
        out: (tokens, blocks, outer, inner), a view of what is written; the columns are its pairs.
        bias: (blocks · columns,).
        activation: what the product ends in.
        upstream: with it, `out` gets y_grad · activation'(product + bias) instead.

    Returns:
        Float32 (blocks · columns,): the sum of that over tokens, if upstream asks for it.
    """
    x, factor = readable(x, 0), readable(factor, 1)
    (tokens, blocks, depth), columns = x.shape, factor.shape[1]
    if tokens == 0:
        return None if upstream is None else x.new_zeros(blocks * columns, dtype=torch.float32)
    kernel = "product" if upstream is None else "gradient"
    how = configuration(
        kernel, Sizes(tokens, columns, depth), x.dtype, x.device,
        awkward=(awkward(x, 0), awkward(factor, 1)),
    )  # fmt: skip
    row_tiles = ceil_divide(tokens, how.rows)
    y_grad = parts = None
    grad_strides = (0, 0, 0)
    if upstream is not None:
        y_grad = readable(upstream.y_grad, 0)
        grad_strides = y_grad.stride()
        if upstream.bias_grad:
            parts = x.new_empty((row_tiles, blocks * columns), dtype=torch.float32)
    run(
        product_kernel,
        (row_tiles * blocks * ceil_divide(columns, how.columns),),
        x,
        x=x,
        factor=factor,
        bias=None if bias is None else bias.contiguous(),
        y_grad=y_grad,
        out=out,
        bias_parts=parts,
        tokens=tokens,
        columns=columns,
        depth=depth,
        rank=out.shape[3],
        blocks=blocks,
        x_token=x.stride(0),
        x_block=x.stride(1),
        x_step=x.stride(2),
        factor_block=factor.stride(0),
        factor_column=factor.stride(1),
        factor_step=factor.stride(2),
        grad_token=grad_strides[0],
        grad_block=grad_strides[1],
        grad_column=grad_strides[2],
        out_token=out.stride(0),
        out_block=out.stride(1),
        out_outer=out.stride(2),
        out_inner=out.stride(3),
        ROWS=how.rows,
        COLUMNS=how.columns,
        DEPTH=how.depth,
        ONE_STEP=depth <= how.depth,
        PAIRS=out.shape[3] > 1,
        BIAS=bias is not None,
        ACTIVATION=activation,
        GRADIENT=upstream is not None,
        BIAS_GRADIENT=parts is not None,
        **how.launch(),
        **arithmetic(x.dtype),
    )
    return None if parts is None else parts.sum(0)


def outer_product(left: Tensor, right: Tensor) -> Tensor:
    """Σ_t left[t, b, m] right[t, b, n] of every block: (blocks, rows, columns), in their dtype.

    Args:
        left: (tokens, blocks, rows).
        right: (tokens, blocks, columns).
    """
    left, right = readable(left, 0), readable(right, 0)
    (tokens, blocks, rows), columns = left.shape, right.shape[2]
    shape = (blocks, rows, columns)
    if tokens == 0:
        return left.new_zeros(shape)
    how = configuration(
        "outer", Sizes(rows, columns, tokens), left.dtype, left.device,
        awkward=(awkward(left, 0), awkward(right, 0)),
    )  # fmt: skip
    how = how._replace(stages=max(how.stages, 2))
    programs = blocks * ceil_divide(rows, how.rows) * ceil_divide(columns, how.columns)
    part_tokens = how.depth * ceil_divide(
        ceil_divide(tokens, how.depth), token_parts(tokens, programs, how, left.device)
    )
    parts = ceil_divide(tokens, part_tokens)
    dtype = left.dtype if parts == 1 else torch.float32
    out = left.new_empty((parts, *shape), dtype=dtype)
    run(
        outer_kernel,
        (parts * programs,),
        left,
        left=left,
        right=right,
        out=out,
        tokens=tokens,
        rows=rows,
        columns=columns,
        blocks=blocks,
        part_tokens=part_tokens,
        left_token=left.stride(0),
        left_block=left.stride(1),
        left_row=left.stride(2),
        right_token=right.stride(0),
        right_block=right.stride(1),
        right_column=right.stride(2),
        ROWS=how.rows,
        COLUMNS=how.columns,
        DEPTH=how.depth,
        **how.launch(),
        **arithmetic(left.dtype),
    )
    return out[0] if parts == 1 else out.sum(0).to(left.dtype)
