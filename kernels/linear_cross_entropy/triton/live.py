"""The map of live tiles as lists, one for each row of tiles within a chunk."""

from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.sizes import ceil_divide


class Lists(NamedTuple):
    """Which tiles of a chunk are live, for each row of tiles, in ascending order.

    Attributes:
        tiles: (chunks, rows, tiles of a chunk) int32, counted from the chunk's first.
        counts: (chunks, rows) int32, how many of them are live; what follows is not.
    """

    tiles: Tensor
    counts: Tensor


def live_lists(live: Tensor, tiles_per_chunk: int) -> Lists:
    """Lists along the second dimension of a map, without reading anything back.

    Args:
        live: (rows, tiles) of zeros and ones.
        tiles_per_chunk: the last chunk is filled up with tiles that are not live.
    """
    rows, tiles = live.shape
    chunks = ceil_divide(tiles, tiles_per_chunk)
    padded = live.new_zeros(rows, chunks * tiles_per_chunk)
    padded[:, :tiles] = live
    padded = padded.view(rows, chunks, tiles_per_chunk).transpose(0, 1)
    order = padded.argsort(dim=2, descending=True, stable=True)
    return Lists(order.to(torch.int32).contiguous(), padded.sum(2, dtype=torch.int32).contiguous())
