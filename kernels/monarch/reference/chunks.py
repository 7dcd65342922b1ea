"""How many tokens go through both products at once.

On a CPU what lies between the products is to stay in the second-level cache: written to memory and
read again it costs more than the products of small blocks do. A GPU has no use for chunks here.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CACHED = 2**19
"""Hidden values of a chunk on a CPU: 2 MiB in float32."""
FEWEST = 32
"""Tokens of a chunk on a CPU; fewer make thin products."""


def token_chunks(tokens: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices of tokens, in order; none where there are no tokens."""
    step = tokens if device.type != "cpu" else max(FEWEST, CACHED // max(width, 1))
    for start in range(0, tokens, max(step, 1)):
        yield slice(start, min(start + step, tokens))


def hidden_of(hidden: Tensor, chunk: slice, width: int) -> Tensor:
    """The part of the flat hidden values that a chunk of tokens has."""
    return hidden[chunk.start * width : chunk.stop * width]
