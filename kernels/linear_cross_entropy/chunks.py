"""How many tokens and columns of the logits are held at once."""

from typing import NamedTuple

from ropewalk.kernels.sizes import ceil_divide

WORKSPACE = 64 * 2**20
"""Bytes that an implementation may hold beside its results."""


class Chunks(NamedTuple):
    """Sizes of a tile of logits."""

    tokens: int
    columns: int


def spans(count: int, size: int) -> list[tuple[int, int]]:
    """(start, end) of consecutive chunks of `size`, the last one shorter."""
    return [
        (index * size, min(count, (index + 1) * size)) for index in range(ceil_divide(count, size))
    ]
