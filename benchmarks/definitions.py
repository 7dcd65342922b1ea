"""Distance rules as their papers define them, for the oracle.

A rule is written as cases of the pair (i, j), in order, the last that holds being taken; each turns
the query to one position and the key to another, so that the score sees their difference:

    plain           i, j
    ReRoPE          i, j              i − j ≥ w: w, 0
    Leaky ReRoPE    i, j              i − j ≥ w: i/k + w − w/k, j/k
    Self-Extend     i, j              i − j ≥ W: ⌊i/G⌋ + W − ⌊W/G⌋, ⌊j/G⌋
    dual chunk      i mod s, j mod s  one block of s apart: min(i mod s + s, c), j mod s
                                      more blocks apart: c, j mod s      with s = c − local

Nothing here is what the op uses: of the library's rules only the parameters are read. Sources:
kexue.fm/archives/9708, arXiv 2401.01325, arXiv 2402.17463.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.blocks.rotary import DualChunk, LeakyReRoPE, Plain, ReRoPE, SelfExtend
from ropewalk.kernels.rotary_attention import DistanceRule


class Piece(NamedTuple):
    """One case of a rule.

    Attributes:
        holds: (query, key), the pairs that it takes from the pieces before it.
        query: (query,), to which position each query is turned.
        key: (key,), to which position each key is turned.
    """

    holds: Tensor
    query: Tensor
    key: Tensor


def pieces(rule: DistanceRule, query: Tensor, key: Tensor) -> list[Piece]:
    """The cases of a rule for pairs of positions.

    Args:
        rule: one of the library's.
        query: (query,), i of each query.
        key: (key,), j of each key.
    """
    i, j = query.double(), key.double()
    away = i[:, None] - j
    anywhere = torch.ones_like(away, dtype=torch.bool)
    match rule:
        case Plain():
            return [Piece(anywhere, i, j)]
        case ReRoPE(window=w):
            return [Piece(anywhere, i, j), Piece(away >= w, 0 * i + w, 0 * j)]
        case LeakyReRoPE(window=w, factor=k):
            return [Piece(anywhere, i, j), Piece(away >= w, i / k + w - w / k, j / k)]
        case SelfExtend(group=g, window=w):
            grouped = (i / g).floor() + w - w // g
            return [Piece(anywhere, i, j), Piece(away >= w, grouped, (j / g).floor())]
        case DualChunk(chunk=c, local=local):
            s = c - local
            block_i, block_j = (i / s).floor(), (j / s).floor()
            within_i, within_j = i - s * block_i, j - s * block_j
            apart = block_i[:, None] - block_j
            return [
                Piece(anywhere, within_i, within_j),
                Piece(apart >= 1, (within_i + s).clamp(max=c), within_j),
                Piece(apart >= 2, 0 * i + c, within_j),
            ]
        case _:
            raise TypeError(
                f"expected a rule of ropewalk.blocks.rotary, got {type(rule).__name__}; write its "
                "definition in benchmarks/definitions.py"
            )
