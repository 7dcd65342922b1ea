"""`Rotation`: what an implementation of `rotate_query_key` needs beside queries and keys."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.shapes import Layout


@dataclass(frozen=True)
class Rotation:
    """Angles of queries and of keys, and the norms before the rotation.

    Tables are (1 | batch, seq, pairs), float32 or float64; weights are (head_dim,) or None for no
    norm. `inverse` turns by the opposite angles, which is the transpose.
    """

    query_cos: Float[Tensor, "#batch query pairs"]
    query_sin: Float[Tensor, "#batch query pairs"]
    key_cos: Float[Tensor, "#batch key pairs"]
    key_sin: Float[Tensor, "#batch key pairs"]
    query_weight: Float[Tensor, " head_dim"] | None
    key_weight: Float[Tensor, " head_dim"] | None
    eps: float
    layout: Layout
    inverse: bool

    def back(self) -> "Rotation":
        """The opposite rotation, without norms."""
        return replace(self, query_weight=None, key_weight=None, inverse=not self.inverse)


def empty_alike(x: Tensor) -> Tensor:
    """A dense tensor of the shape of `x`, heads and tokens lying in memory in the order of `x`.

    (batch, seq, heads, head_dim) seen as (batch, heads, seq, head_dim) is what projections make; so
    it stays. Only two orders are told apart, in a way that fake tensors and real ones agree on.
    """
    if x.stride(1) < x.stride(2):
        return torch.empty_like(x.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
            1, 2
        )
    return torch.empty_like(x, memory_format=torch.contiguous_format)
