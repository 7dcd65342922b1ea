"""Forward: the first product leaves its result so that the second can read it as it lies.

For a chunk of t tokens, whose hidden values stay in the cache, tokens come last: H[k, r, l, t]. The
first product writes block k of it as one matrix (r·l, t); the second takes, for output block l, the
matrix (k·r, t) whose rows lie l·t apart, and writes block l of the result where it belongs. Those
are ordinary operands of matrix products: no value of a token is copied to be permuted. It takes the
rows of R in the order (r, l), a copy of the factor, and none at rank 1.
"""

import torch
from torch import Tensor

from ropewalk.kernels.monarch.activation import activate
from ropewalk.kernels.monarch.problem import Problem
from ropewalk.kernels.monarch.reference.chunks import hidden_of, token_chunks


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
    """R with the rows of a block in the order (r, l) instead of (l, r)."""
    if problem.rank == 1:
        return problem.right
    rows = problem.right.unflatten(1, (problem.output_blocks, problem.rank))
    return rows.transpose(1, 2).flatten(1, 2)


def hidden_view(problem: Problem, flat: Tensor) -> Tensor:
    """H (k·r, l, t) of the flat hidden values of a chunk."""
    tokens = flat.numel() // problem.width
    return flat.view(problem.input_blocks * problem.rank, problem.output_blocks, tokens)


def first_product(problem: Problem, rows: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
    """H (k·r, l, t) of some tokens.

    Args:
        problem: what the factors belong to.
        rows: `ranks_first` of it.
        x: (t, k, p).
        out: where H goes, flat; fresh memory if none.
    """
    flat = x.new_empty(x.shape[0] * problem.width) if out is None else out
    torch.bmm(rows, x.permute(1, 2, 0), out=flat.view(*rows.shape[:2], x.shape[0]))
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
