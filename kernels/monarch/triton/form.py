"""Which form multiplies: two kernels, or one that keeps the hidden values in registers.

Nobody has measured this; the choice is a model of the bytes that each form moves. Two kernels write
the hidden values and read them back, T·(in + 2·width + out) elements through memory. The fused one
moves T·(in + out), but each of its groups of output blocks reads x again from the cache, and its
second factor comes by sectors of 32 bytes, because a slice's rank is all that is contiguous there.
A byte from the cache is taken to cost half of one from memory, as the bandwidths of large chips
have it, and the two times are added, as if neither went on during the other.

    form         memory                     cache
    two kernels  T (in + 2 width + out)     T (in ⌈l r / C⌉ + width ⌈s / C⌉) + T / M · parameters
    fused        T (in + out)               T · in · groups + T / M · (l r in + 32 B · k · out)

with tiles of M tokens × C columns. What is not modelled, tiles that are partly empty above all, has
to be paid from the margin by which the fused form must win. That leaves it those problems of small
rank whose hidden values are several times as wide as the features; in the usual ones, width at most
the features, there are two kernels. And where a backward is to come that needs the hidden values,
for the fused form never writes them.
"""

from typing import Literal

from ropewalk.kernels.monarch.problem import Problem
from ropewalk.kernels.monarch.triton.configurations import LEAST, Configuration
from ropewalk.kernels.sizes import ceil_divide

Form = Literal["two kernels", "fused"]

CACHE_COST = 0.5
"""Of a byte from the cache, in bytes from memory."""
ADVANTAGE = 1.5
"""What the model must find before one kernel takes the place of two."""
SECTOR = 32
"""Bytes that are read at least."""
MOST_RANKS = LEAST
"""A small rank: one whose tile is no wider than the narrowest."""


def group_of(problem: Problem, columns: int) -> int:
    """Output blocks of a group: as many as fill the narrowest tile of ranks, and one at least."""
    by_rank = LEAST // problem.rank
    by_columns = columns // problem.output_size
    return max(1, min(by_rank, by_columns, problem.output_blocks))


def two_kernels_cost(problem: Problem, how: Configuration) -> float:
    """Bytes of memory that moving takes as long as.

    Args:
        problem: the product.
        how: of the kernel.
    """
    p, size = problem, problem.x.dtype.itemsize
    inputs, outputs = p.input_blocks * p.input_size, p.output_blocks * p.output_size
    first = ceil_divide(p.output_blocks * p.rank, how.columns)
    second = ceil_divide(p.output_size, how.columns)
    factors = p.right.numel() + p.left.numel()
    memory = p.tokens * (inputs + 2 * p.width + outputs)
    cache = p.tokens * (inputs * first + p.width * second)
    cache += ceil_divide(p.tokens, how.rows) * factors
    return size * (memory + CACHE_COST * cache)


def fused_cost(problem: Problem, how: Configuration) -> float:
    """The same of one kernel."""
    p, size = problem, problem.x.dtype.itemsize
    inputs, outputs = p.input_blocks * p.input_size, p.output_blocks * p.output_size
    group = group_of(p, how.columns)
    groups = ceil_divide(p.output_blocks, group)
    groups *= ceil_divide(group * p.output_size, how.columns)
    sectors = max(1, p.rank * size / SECTOR) * SECTOR * p.input_blocks * outputs
    cache = size * p.tokens * inputs * groups
    cache += ceil_divide(p.tokens, how.rows) * (size * p.right.numel() + sectors)
    return size * p.tokens * (inputs + outputs) + CACHE_COST * cache


def choose(problem: Problem, two: Configuration, one: Configuration, keep_hidden: bool) -> Form:
    """The form that moves less, the fused one only where it does by a margin."""
    if keep_hidden or problem.rank > MOST_RANKS:
        return "two kernels"
    wins = ADVANTAGE * fused_cost(problem, one) < two_kernels_cost(problem, two)
    return "fused" if wins else "two kernels"
