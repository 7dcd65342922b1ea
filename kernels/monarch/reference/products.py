"""Forward: two batched products, the second of which is written where it belongs.

The hidden values of a chunk of t tokens stay in the cache. They lie as the dtype's products like:

    float32, float64   tokens last, H[k, r, l, t]. The first product writes block k as one matrix
                       (r·l, t); the second takes, for output block l, the matrix (k·r, t) whose
                       rows lie l·t apart. Those are ordinary operands: no value of a token is
                       copied to be permuted. R is taken with its rows in the order (r, l), a copy
                       of the factor, and none at rank 1.
    half precision,    tokens first, H[l, t, k, r], gathered from the first product's result in runs
    few tokens         of r numbers: matrix units take transposed operands several times more slowly
                       than they take a copy, and for fewer tokens than a block has features the
                       copy of R would be the larger one.
"""

import torch
from torch import Tensor

from ropewalk.kernels.monarch.activation import activate
from ropewalk.kernels.monarch.problem import Problem
from ropewalk.kernels.monarch.reference.chunks import hidden_of, token_chunks, tokens_first


def forward(problem: Problem, keep_hidden: bool) -> tuple[Tensor, Tensor | None]:
    """The result and the hidden values; see `ropewalk.kernels.monarch.problem`."""
    x, width = problem.x, problem.width
    shape = (problem.output_blocks, problem.tokens, problem.output_size)
    y = x.new_empty(shape if problem.block_major else (shape[1], shape[0] * shape[2]))
    kept = x.new_empty(problem.tokens * width) if keep_hidden else None
    rows = ranks_first(problem)
    for chunk in token_chunks(problem):
        place = None if kept is None else hidden_of(kept, chunk, width)
        hidden = first_product(problem, rows, x[chunk], place)
        z = second_product(problem, hidden, problem.blocks_of(y)[chunk])
        if problem.activation is not None:
            z.copy_(activate(z, problem.activation))
    return y, kept


def ranks_first(problem: Problem) -> Tensor:
    """R as the first product takes it; with the rows of a block as (r, l) where tokens are last."""
    if problem.rank == 1 or tokens_first(problem):
        return problem.right
    rows = problem.right.unflatten(1, (problem.output_blocks, problem.rank))
    return rows.transpose(1, 2).flatten(1, 2)


def hidden_view(problem: Problem, flat: Tensor) -> Tensor:
    """H (k·r, l, t) of the flat hidden values of a chunk."""
    inputs, outputs = problem.input_blocks * problem.rank, problem.output_blocks
    tokens = flat.numel() // problem.width
    if tokens_first(problem):
        return flat.view(outputs, tokens, inputs).permute(2, 0, 1)
    return flat.view(inputs, outputs, tokens)


def first_product(problem: Problem, rows: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
    """H (k·r, l, t) of some tokens.

    Args:
        problem: what the factors belong to.
        rows: `ranks_first` of it.
        x: (t, k, p).
        out: where H goes, flat; fresh memory if none.
    """
    (tokens, k, _), outputs, rank = x.shape, problem.output_blocks, problem.rank
    flat = x.new_empty(tokens * problem.width) if out is None else out
    if tokens_first(problem):
        hidden = torch.bmm(x.transpose(0, 1), rows.mT).view(k, tokens, outputs, rank)
        flat.view(outputs, tokens, k, rank).copy_(hidden.permute(2, 1, 0, 3))
    else:
        torch.bmm(rows, x.permute(1, 2, 0), out=flat.view(k, rank * outputs, tokens))
    return hidden_view(problem, flat)


def second_product(problem: Problem, hidden: Tensor, out: Tensor) -> Tensor:
    """Writes what the activation takes, of H (k·r, l, t), to `out` (t, l, s), and gives it."""
    columns, blocks = hidden.permute(1, 2, 0), out.transpose(0, 1)
    if problem.bias is None:
        torch.bmm(columns, problem.left.mT, out=blocks)
    else:
        bias = problem.bias.view(problem.output_blocks, 1, problem.output_size)
        torch.baddbmm(bias, columns, problem.left.mT, out=blocks)
    return out
