"""The threshold of top-p by a search in sections over integers that are ordered as the logits are.

    kept(i) ⇔ Σ_{x_j > x_i} p_j < top_p ⇔ x_i ≥ c
    c the greatest logit with Σ_{x_j ≥ c} p_j ≥ top_p

The bits of a float32, those below the sign turned over where it is negative, are an integer in the
order of the numbers; of half precision the lower bits say nothing and are shifted out, so that
neighbouring integers are neighbouring numbers. Along the integers the mass of what is at least as
great only falls, so a bracket [low, high) in which it crosses top_p is narrowed until it holds one
integer: each look at the logits tries WAYS thresholds. The mass of each is a sum in the same order,
so that rounding cannot turn the order of two masses round. −0 and 0 are one number.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.context_merge.triton.rows import load_listed

GREATEST = tl.constexpr(2**31 - 1)


@triton.jit
def key_of(x, SHIFT: tl.constexpr):
    """Integers in the order of `x`, float32 whose last SHIFT bits are zero."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & GREATEST)) >> SHIFT


@triton.jit
def value_of(key, SHIFT: tl.constexpr):
    """The smallest float32 of a key."""
    bits = key.to(tl.int32) << SHIFT
    return (bits ^ ((bits >> 31) & GREATEST)).to(tl.float32, bitcast=True)


@triton.jit
def sections(low, high, WAYS: tl.constexpr):
    """WAYS thresholds that cut [low, high) into equal sections, as far as integers can."""
    return low + (high - low) * (tl.arange(0, WAYS).to(tl.int64) + 1) // (WAYS + 1)


@triton.jit
def narrowed(low, high, tried, mass, needed):
    """The section in which the mass crosses what is needed."""
    enough = mass >= needed
    return (
        tl.maximum(low, tl.max(tl.where(enough, tried, low), axis=0)),
        tl.minimum(high, tl.min(tl.where(enough, high, tried), axis=0)),
    )


@triton.jit
def bound_from_below(
    maxima, masses, blocks, maximum, total, spare, low, high,
    TILE: tl.constexpr, WAYS: tl.constexpr, LOOKS: tl.constexpr, WIDTH: tl.constexpr,
    SHIFT: tl.constexpr,
):  # fmt: skip
    """A key that the threshold's is not below, from maximum and mass of a row's blocks.

    What lies below a value v is of a block at most its mass, without its maximum if that is not
    below, and at most WIDTH · exp v. Where this is no more than may be dropped, the threshold is at
    least v. After LOOKS looks the bound is close enough.

    Args:
        total: the row's mass.
        spare: how much of it may be dropped, with room for rounding.
    """
    for _ in range(LOOKS):
        tried = sections(low, high, WAYS)
        values = value_of(tried, SHIFT)
        most = WIDTH * tl.exp(values - maximum)
        dropped = tl.zeros([WAYS, TILE], tl.float32)
        for first in range(0, blocks, TILE):
            at = first + tl.arange(0, TILE)
            x = tl.load(maxima + at, mask=at < blocks, other=float("-inf"))
            greatest = tl.exp(x - maximum)
            mass = tl.load(masses + at, mask=at < blocks, other=0.0) * greatest
            reaches = x[None, :] >= values[:, None]
            rest = mass[None, :] - tl.where(reaches, greatest[None, :], 0.0)
            dropped += tl.minimum(rest, most[:, None])
        # As a mass that is kept, which is enough where the rest may be dropped.
        kept = total - tl.sum(dropped, axis=1)
        low, high = narrowed(low, high, tried, kept, total - spare)
    return low


@triton.jit
def threshold_key(
    start, step, listed, count, vocabulary, maximum, needed, low, high,
    BLOCKS: tl.constexpr, WIDTH: tl.constexpr, WAYS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """The threshold's key, of the blocks in a list, which hold everything from `low` on.

    The bracket also shrinks to the least and the greatest key that there are in it, which ends the
    search of float32 long before its integers are exhausted.
    """
    SIZE: tl.constexpr = BLOCKS * WIDTH
    while high - low > 1:
        tried = sections(low, high, WAYS)
        values = value_of(tried, SHIFT)
        low_value, high_value = value_of(low, SHIFT), value_of(high, SHIFT)
        total = tl.zeros([WAYS, SIZE], tl.float32)
        least = tl.full([SIZE], float("inf"), tl.float32)
        greatest = tl.full([SIZE], float("-inf"), tl.float32)
        for first in range(0, count, BLOCKS):
            x = load_listed(start, step, listed, first, count, vocabulary, BLOCKS, WIDTH)
            found = x[None, :] >= values[:, None]
            total += tl.where(found, tl.exp(x - maximum)[None, :], 0.0)
            least = tl.minimum(least, tl.where(x >= low_value, x, float("inf")))
            greatest = tl.maximum(greatest, tl.where(x < high_value, x, float("-inf")))
        first_key = key_of(tl.min(least, axis=0), SHIFT).to(tl.int64)
        last_key = key_of(tl.max(greatest, axis=0), SHIFT).to(tl.int64)
        low, high = narrowed(low, high, tried, tl.sum(total, axis=1), needed)
        # Nothing in the bracket: there is no key to tell apart.
        none = first_key > last_key
        low = tl.where(none, low, tl.maximum(low, first_key))
        high = tl.where(none, low + 1, tl.minimum(high, last_key + 1))
    return low
