"""Which keys a block of queries meets in one branch, and which queries a block of keys.

For a branch that takes the distances lower ≤ d < upper, a block of queries at positions [q₀, q₁]
meets keys in the interval

    some pair belongs to the branch:   q₀ − upper < k ≤ q₁ − lower
    every pair belongs to it:          q₁ − upper < k ≤ q₀ − lower

so with keys in ascending order the tiles fall into masked | full | masked, and hidden tiles are
never visited. Full tiles need no mask and one dot product. A tile that straddles the edge between
two branches is a masked tile of both. Distances between branches are measured in blocks of `unit`
tokens, the causal and the sliding edge in tokens.

Where positions are the defaults the edges are arithmetic. Otherwise they are found by a binary
search among the positions, all edges at once; positions out of order make every tile a masked one.

Every function here works on *offsets*: indices counted from the first key (or query) of the row or
packed sequence. `Tiles` is (start, full_start, full_stop, stop), all multiples of the tile size.
"""

import triton
import triton.language as tl

NO_EDGE = tl.constexpr(2**29)
"""More than any distance: the upper edge of a branch without one, and negated the lower edge."""


@triton.jit
def first_past(array, limits, length, steps, INCLUSIVE: tl.constexpr):
    """First offset whose value is > (INCLUSIVE: ≥) each of the limits, in ascending arrays.

    Args:
        array: pointers of the shape of `limits`, to the first value of the array of each.
        limits: vector of limits.
        length: values in an array.
        steps: iterations, at least log₂(length) + 1.
        INCLUSIVE: whether a value equal to the limit counts as past it.
    """
    low = tl.zeros_like(limits).to(tl.int32)
    high = low + length
    for _ in range(steps):
        middle = (low + high) // 2
        searching = low < high
        value = tl.load(array + middle, mask=searching, other=0)
        past = value >= limits if INCLUSIVE else value > limits
        high = tl.where(searching & past, middle, high)
        low = tl.where(searching & (past == 0), middle + 1, low)
    return low


@triton.jit
def lane(vector, INDEX: tl.constexpr, LANES: tl.constexpr):
    """One element of a vector as a scalar."""
    return tl.sum(tl.where(tl.arange(0, LANES) == INDEX, vector, 0))


@triton.jit
def to_tiles(start, full_start, full_stop, stop, BLOCK: tl.constexpr):
    """Rounds offsets to tiles: the visited outwards, the full inwards."""
    start = start // BLOCK * BLOCK
    stop = tl.maximum((stop + BLOCK - 1) // BLOCK * BLOCK, start)
    full_start = tl.minimum((full_start + BLOCK - 1) // BLOCK * BLOCK, stop)
    full_stop = full_stop // BLOCK * BLOCK
    empty = full_stop <= full_start
    full_start = tl.where(empty, stop, full_start)
    full_stop = tl.where(empty, stop, full_stop)
    return start, full_start, full_stop, stop


@triton.jit
def masked_tile(index, start, full_start, full_stop, BLOCK: tl.constexpr):
    """Offset of the index-th masked tile: those before the full ones, then those after."""
    before = (full_start - start) // BLOCK
    return tl.where(index < before, start + index * BLOCK, full_stop + (index - before) * BLOCK)


@triton.jit
def keys_of_queries(
    first, last, first_block, last_block, length, lower, upper, window, unit,
    positions, blocks, ordered, steps,
    LOWER: tl.constexpr, UPPER: tl.constexpr, CAUSAL: tl.constexpr, SLIDING: tl.constexpr,
    BY_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tiles of keys that queries at positions first … last meet in a branch.

    Args:
        first: least position of a query, `last` the greatest, in tokens.
        first_block: least block index of a query, `last_block` the greatest, in units.
        length: keys of the row or sequence.
        lower: least block distance of the branch, `upper` one past the greatest; ∓`NO_EDGE` for
            none.
        window: the sliding window in tokens.
        unit: tokens in a block.
        positions: pointer to the first key's position, `blocks` to its block index.
        ordered: pointer to whether the keys ascend.
        steps: iterations of a search.
        LOWER: whether the branch has a least distance, UPPER a greatest.
    """
    start = 0
    full_start = 0
    stop = length
    full_stop = length
    if BY_INDEX:
        if CAUSAL:
            stop = tl.minimum(stop, last + 1)
            full_stop = tl.minimum(full_stop, first + 1)
        elif SLIDING:
            stop = tl.minimum(stop, last + window)
            full_stop = tl.minimum(full_stop, first + window)
        if SLIDING:
            start = tl.maximum(start, first - window + 1)
            full_start = tl.maximum(full_start, last - window + 1)
        # Without an edge the products below would overflow.
        if LOWER:
            bounded = lower != -NO_EDGE
            stop = tl.minimum(stop, tl.where(bounded, (last_block - lower + 1) * unit, length))
            full_stop = tl.minimum(
                full_stop, tl.where(bounded, (first_block - lower + 1) * unit, length)
            )
        if UPPER:
            bounded = upper != NO_EDGE
            start = tl.maximum(start, tl.where(bounded, (first_block - upper + 1) * unit, 0))
            full_start = tl.maximum(
                full_start, tl.where(bounded, (last_block - upper + 1) * unit, 0)
            )
    elif CAUSAL or SLIDING or LOWER or UPPER:
        lanes = tl.arange(0, 8)
        ahead = 0 if CAUSAL else window
        limits = tl.where(lanes == 0, last + ahead, first + ahead)
        limits = tl.where(lanes == 2, first - window, limits)
        limits = tl.where(lanes == 3, last - window, limits)
        limits = tl.where(lanes == 4, last_block - lower, limits)
        limits = tl.where(lanes == 5, first_block - lower, limits)
        limits = tl.where(lanes == 6, first_block - upper, limits)
        limits = tl.where(lanes == 7, last_block - upper, limits)
        if not CAUSAL:  # visible are keys *before* query + window, so the full ones end earlier
            limits = tl.where(lanes == 1, first + ahead - 1, limits)
        array = tl.where(lanes < 4, positions + lanes * 0, blocks + lanes * 0)
        found = first_past(array, limits, length, steps, False)
        if CAUSAL or SLIDING:
            stop = tl.minimum(stop, lane(found, 0, 8))
            full_stop = tl.minimum(full_stop, lane(found, 1, 8))
        if SLIDING:
            start = tl.maximum(start, lane(found, 2, 8))
            full_start = tl.maximum(full_start, lane(found, 3, 8))
        if LOWER:
            stop = tl.minimum(stop, lane(found, 4, 8))
            full_stop = tl.minimum(full_stop, lane(found, 5, 8))
        if UPPER:
            start = tl.maximum(start, lane(found, 6, 8))
            full_start = tl.maximum(full_start, lane(found, 7, 8))
        if tl.load(ordered) == 0:
            start = 0
            stop = length
            full_start = length
            full_stop = 0
    return to_tiles(start, full_start, full_stop, stop, BLOCK)


@triton.jit
def queries_of_keys(
    first, last, first_block, last_block, length, offset, lower, upper, window, unit,
    positions, blocks, ordered, steps,
    LOWER: tl.constexpr, UPPER: tl.constexpr, CAUSAL: tl.constexpr, SLIDING: tl.constexpr,
    BY_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tiles of queries that keys at positions first … last meet in a branch.

    The arguments mirror those of `keys_of_queries`; `offset` is the first query's position where
    positions are the defaults.
    """
    start = 0
    full_start = 0
    stop = length
    full_stop = length
    if BY_INDEX:
        if CAUSAL:
            start = tl.maximum(start, first - offset)
            full_start = tl.maximum(full_start, last - offset)
        elif SLIDING:
            start = tl.maximum(start, first - window + 1 - offset)
            full_start = tl.maximum(full_start, last - window + 1 - offset)
        if SLIDING:
            stop = tl.minimum(stop, last + window - offset)
            full_stop = tl.minimum(full_stop, first + window - offset)
        if LOWER:
            bounded = lower != -NO_EDGE
            start = tl.maximum(start, tl.where(bounded, (first_block + lower) * unit - offset, 0))
            full_start = tl.maximum(
                full_start, tl.where(bounded, (last_block + lower) * unit - offset, 0)
            )
        if UPPER:
            bounded = upper != NO_EDGE
            stop = tl.minimum(stop, tl.where(bounded, (last_block + upper) * unit - offset, length))
            full_stop = tl.minimum(
                full_stop, tl.where(bounded, (first_block + upper) * unit - offset, length)
            )
        stop = tl.maximum(stop, 0)
    elif CAUSAL or SLIDING or LOWER or UPPER:
        lanes = tl.arange(0, 8)
        behind = 0 if CAUSAL else window
        limits = tl.where(lanes == 0, first - behind, last - behind)
        limits = tl.where(lanes == 2, last + window, limits)
        limits = tl.where(lanes == 3, first + window, limits)
        limits = tl.where(lanes == 4, first_block + lower, limits)
        limits = tl.where(lanes == 5, last_block + lower, limits)
        limits = tl.where(lanes == 6, last_block + upper, limits)
        limits = tl.where(lanes == 7, first_block + upper, limits)
        if not CAUSAL:
            limits = tl.where(lanes == 1, last - behind + 1, limits)
        array = tl.where(lanes < 4, positions + lanes * 0, blocks + lanes * 0)
        found = first_past(array, limits, length, steps, True)
        if CAUSAL or SLIDING:
            start = tl.maximum(start, lane(found, 0, 8))
            full_start = tl.maximum(full_start, lane(found, 1, 8))
        if SLIDING:
            stop = tl.minimum(stop, lane(found, 2, 8))
            full_stop = tl.minimum(full_stop, lane(found, 3, 8))
        if LOWER:
            start = tl.maximum(start, lane(found, 4, 8))
            full_start = tl.maximum(full_start, lane(found, 5, 8))
        if UPPER:
            stop = tl.minimum(stop, lane(found, 6, 8))
            full_stop = tl.minimum(full_stop, lane(found, 7, 8))
        if tl.load(ordered) == 0:
            start = 0
            stop = length
            full_start = length
            full_stop = 0
    return to_tiles(start, full_start, full_stop, stop, BLOCK)
