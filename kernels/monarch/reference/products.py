"""Forward: the first product leaves its result so that the second can read it as it lies.

For a chunk of t tokens, whose hidden values stay in the cache:

    low ranks   tokens come last. The first product writes H[k, l, r, t], block k of it as one
                matrix (l·r, t). At rank 1 the second takes the matrix (k, t) of output block l out
                of it, whose rows lie l·t apart, and nothing is moved; at other ranks runs of r·t
                numbers are gathered to H[l, k, r, t].
    others      tokens come first: runs of r numbers are gathered to H[l, t, k, r]. The products are
                then the faster ones, and r numbers are run enough.
"""

import torch
from torch import Tensor

from ropewalk.kernels.monarch.activation import activate
from ropewalk.kernels.monarch.problem import Problem
from ropewalk.kernels.monarch.reference.chunks import hidden_of, token_chunks

TOKENS_FIRST = 4
"""The least rank at which tokens come first."""


def forward(problem: Problem, keep_hidden: bool) -> tuple[Tensor, Tensor | None]:
    """The result and the hidden values; see `ropewalk.kernels.monarch.problem`."""
    x, width = problem.x, problem.width
    shape = (problem.output_blocks, problem.tokens, problem.output_size)
    y = x.new_empty(shape if problem.block_major else (shape[1], shape[0] * shape[2]))
    kept = x.new_empty(problem.tokens * width) if keep_hidden else None
    for chunk in token_chunks(problem):
        out = None if kept is None else hidden_of(kept, chunk, width)
        hidden = first_product(problem, x[chunk], out)
        z = second_product(problem, hidden)
        result = activate(z, problem.activation)
        problem.blocks_of(y)[chunk].copy_(result.transpose(0, 1))
    return y, kept


def hidden_view(problem: Problem, flat: Tensor) -> Tensor:
    """H (k·r, l, t) of the flat hidden values of a chunk."""
    inputs, outputs = problem.input_blocks * problem.rank, problem.output_blocks
    tokens = flat.numel() // problem.width
    if problem.rank == 1:
        return flat.view(inputs, outputs, tokens)
    if problem.rank < TOKENS_FIRST:
        return flat.view(outputs, inputs, tokens).transpose(0, 1)
    return flat.view(outputs, tokens, inputs).permute(2, 0, 1)


def first_product(problem: Problem, x: Tensor, out: Tensor | None) -> Tensor:
    """H (k·r, l, t) of some tokens.

    Args:
        problem: what the factors belong to.
        x: (t, k, p).
        out: where H goes, flat; fresh memory if none.
    """
    (tokens, k, _), outputs, rank = x.shape, problem.output_blocks, problem.rank
    flat = x.new_empty(tokens * problem.width) if out is None else out
    if rank >= TOKENS_FIRST:
        hidden = torch.bmm(x.transpose(0, 1), problem.right.mT).view(k, tokens, outputs, rank)
        flat.view(outputs, tokens, k, rank).copy_(hidden.permute(2, 1, 0, 3))
    elif rank > 1:
        hidden = torch.bmm(problem.right, x.permute(1, 2, 0)).view(k, outputs, rank * tokens)
        flat.view(outputs, k, rank * tokens).copy_(hidden.transpose(0, 1))
    else:
        torch.bmm(problem.right, x.permute(1, 2, 0), out=flat.view(k, outputs, tokens))
    return hidden_view(problem, flat)


def second_product(problem: Problem, hidden: Tensor) -> Tensor:
    """What the activation takes, (l, t, s), of H (k·r, l, t)."""
    columns = hidden.permute(1, 2, 0)
    if problem.bias is None:
        return torch.bmm(columns, problem.left.mT)
    bias = problem.bias.view(problem.output_blocks, 1, problem.output_size)
    return torch.baddbmm(bias, columns, problem.left.mT)
