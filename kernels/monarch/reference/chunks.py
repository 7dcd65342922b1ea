"""How many tokens go through both products at once, and how they lie between them.

On a CPU what lies between the products is to stay in the second-level cache: written to memory and
read again it costs more than the products of small blocks do. A GPU has no use for chunks here.
"""

from collections.abc import Iterator

from torch import Tensor

from ropewalk.kernels.monarch.problem import Problem

CACHED = 2**20
"""Bytes of a chunk on a CPU, before, between or after the products."""
FEWEST = 32
"""Tokens of a chunk on a CPU; fewer make thin products."""


def tokens_first(problem: Problem) -> bool:
    """Whether tokens come before ranks in the hidden values; see `products`."""
    return problem.x.dtype.itemsize == 2 or problem.tokens < problem.input_size


def token_chunks(problem: Problem) -> Iterator[slice]:
    """Slices of tokens, in order; none where there are no tokens.

    On a CPU a chunk has at least as many tokens as a block has features, or twice as many where
    tokens come last: the products of large blocks are bound by arithmetic, and the sums of the
    factors' gradients are to be long.
    """
    step = problem.tokens
    if problem.x.device.type == "cpu":
        k, p = problem.x.shape[1:]
        outputs, s, _ = problem.left.shape
        widest = max(problem.width, k * p, outputs * s) * problem.x.dtype.itemsize
        side = max(p, s) * (1 if tokens_first(problem) else 2)
        step = max(FEWEST, side, CACHED // widest)
    for start in range(0, problem.tokens, max(step, 1)):
        yield slice(start, min(start + step, problem.tokens))


def hidden_of(hidden: Tensor, chunk: slice, width: int) -> Tensor:
    """The part of the flat hidden values that a chunk of tokens has."""
    return hidden[chunk.start * width : chunk.stop * width]
