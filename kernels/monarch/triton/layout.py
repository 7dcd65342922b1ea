"""How tensors lie: hidden values with the tokens last, inputs as they come where that can be read.

Between the products a value belongs to a token and to a triple (l, k, r) of output block, input
block and rank. The first product has all (l, r) of one k, the second wants all (k, r) of one l.
With the tokens last,

    hidden[l, k, r, t]

both find runs of tokens whatever the rank: a store of one k writes rows of a tile's tokens, whole
sectors each, and a load for one l reads k·r neighbouring rows. With the tokens first, rank 1 would
write single elements. Rows are whole vectors only where there are multiples of 16 tokens; otherwise
the tokens come first, [t, l, k, r], and a load for one l still reads k·r neighbours.
"""

import torch
from torch import Tensor

from ropewalk.kernels.chips import too_old
from ropewalk.kernels.monarch.problem import Problem

WIDEST = 2**23
"""Elements between neighbours beyond which an offset within a tile may leave 32 bits."""
VECTOR = 16
"""What Triton knows to divide a stride; whole vectors of any dtype."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unsupported(x: Tensor) -> str | None:
    """Why the kernels cannot run on tensors like this one, or None."""
    if x.dtype not in DTYPES:
        return f"its kernels take float16, bfloat16 and float32, got {x.dtype}"
    return too_old(x)


def tokens_last(tokens: int) -> bool:
    """Whether hidden values of so many tokens lie with the tokens last."""
    return tokens % VECTOR == 0 and tokens < WIDEST


def hidden_blocks(hidden: Tensor, problem: Problem) -> Tensor:
    """A view (tokens, l, k, r) of flat hidden values."""
    sizes = (problem.output_blocks, problem.input_blocks, problem.rank)
    if tokens_last(problem.tokens):
        return hidden.view(*sizes, problem.tokens).permute(3, 0, 1, 2)
    return hidden.view(problem.tokens, *sizes)


def readable(x: Tensor, rows: int) -> Tensor:
    """x, or a copy of it where a tile of two of its dimensions could not be read as it lies.

    That is where neither dimension has neighbours in memory, as in an expanded gradient, or where
    they lie very far apart.

    Args:
        x: three-dimensional.
        rows: the dimension of a tile's rows; its columns are the last one.
    """
    if x.numel() == 0:
        return x
    strides = [x.stride(dim) for dim in (rows, -1) if x.shape[dim] > 1]
    if strides and (1 not in strides or max(strides) >= WIDEST):
        return x.contiguous()
    return x


def awkward(x: Tensor, rows: int) -> bool:
    """Whether a tile of two dimensions cannot be loaded by whole vectors.

    Args:
        x: three-dimensional, `readable`.
        rows: the dimension of a tile's rows; its columns are the last one.
    """
    neighbours = rows if x.stride(rows) == 1 and x.shape[rows] > 1 else 2
    others = [x.stride(dim) for dim in range(3) if dim != neighbours and x.shape[dim] > 1]
    return any(number % VECTOR for number in (x.shape[neighbours], *others))
