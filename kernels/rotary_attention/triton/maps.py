"""Positions from indices: `protocols.PositionMap` inside a kernel, with its numbers as constants.

    position = min(floor?((index mod modulus) / divisor) + offset, maximum)

In float32 and rounded as torch rounds, so that a kernel that computes positions and one that is
given them agree to the last bit, as long as float32 holds the indices (2²⁴).
"""

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from ropewalk.kernels.rotary_attention.protocols import PositionMap

INFINITY = tl.constexpr(math.inf)


def constants(maps: Sequence[PositionMap]) -> tuple[float, ...]:
    """The maps' numbers, one after another, as `place_of` reads them."""
    # Integers have a remainder of their own, which a float modulus would not call.
    return tuple(int(n) if place == 3 else n for x in maps for place, n in enumerate(x.numbers()))


@triton.jit
def place_of(index, MAPS: tl.constexpr, WHICH: tl.constexpr):
    """Float32 positions at a tensor of int32 indices.

    Args:
        index: of keys or queries; where negative, nothing is seen from there.
        MAPS: from `constants`.
        WHICH: which of the maps.
    """
    if MAPS[5 * WHICH] == INFINITY:
        position = tl.zeros_like(index).to(tl.float32)
    else:
        if MAPS[5 * WHICH + 3] > 0:
            index = index % MAPS[5 * WHICH + 3]
        position = index.to(tl.float32)
        if MAPS[5 * WHICH] != 1.0:
            position = tl.div_rn(position, MAPS[5 * WHICH])
            if MAPS[5 * WHICH + 2] != 0:
                position = tl.floor(position)
    if MAPS[5 * WHICH + 1] != 0.0:
        position = position + MAPS[5 * WHICH + 1]
    if MAPS[5 * WHICH + 4] != INFINITY:
        position = tl.minimum(position, MAPS[5 * WHICH + 4])
    return position
