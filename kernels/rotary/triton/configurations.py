"""Sizes of a program, by the width of a head and the work there is: a static table, no autotuning.

The work is one read and one write, so what counts is that enough bytes are under way: a thread
holds 32 elements in the forward and 16 of each tensor in the backward, which fits the registers of
at least four programs of 128 threads on a multiprocessor, and reads 16 bytes at a time.
"""

from dataclasses import dataclass

from ropewalk.kernels.sizes import ceil_divide, power_of_two

# Programs from which on a program may take several heads, which reads a tile's angles less often:
# a few waves of a large GPU, so that the last one does not leave much of it idle.
PROGRAMS = 4096
HEADS_PER_PROGRAM = (8, 4, 2)

ELEMENTS = {"forward": 4096, "backward": 2048}
"""Elements of a tile over all threads of a program of four warps."""
FEW_ELEMENTS = 512
"""The same for one warp, where a call has only a few tokens (decoding)."""


@dataclass(frozen=True)
class Configuration:
    """Constants of a kernel; blocks are powers of two."""

    rows: int
    block_pairs: int
    block_rest: int
    num_warps: int


def configuration(
    head_dim: int, pairs: int, element_size: int, tokens: int, kernel: str
) -> Configuration:
    """Sizes for `tokens` tokens over the batch; `kernel` is "forward" or "backward"."""
    block_pairs = power_of_two(pairs)
    rest = head_dim - 2 * pairs
    block_rest = power_of_two(max(rest, 1))
    width = 2 * block_pairs + (block_rest if rest else 0)
    elements = ELEMENTS[kernel] // (2 if element_size > 2 and kernel == "forward" else 1)
    rows = _rows(elements, width)
    if tokens <= rows // 2:
        return Configuration(_rows(FEW_ELEMENTS, width), block_pairs, block_rest, num_warps=1)
    return Configuration(rows, block_pairs, block_rest, num_warps=4)


def _rows(elements: int, width: int) -> int:
    """The greatest power of two of rows that hold so many elements, at least one."""
    return 1 << max(0, (elements // width).bit_length() - 1)


def heads_per_program(tiles: int, heads: int, kv_heads: int) -> int:
    """How many heads a program takes; more where there are programs enough anyway."""
    for number in HEADS_PER_PROGRAM:
        if tiles * (ceil_divide(heads, number) + ceil_divide(kv_heads, number)) >= PROGRAMS:
            return number
    return 1
