"""How windowed attention is cut into calls of a fused kernel that knows causal squares and masks.

Queries that see all keys before them form a causal square, after a rectangle if keys come before
the first query. The others each see exactly `window` keys: a band, cut into blocks of queries that
lie one after another in memory as a batch.

    masked      a block of B queries against its B + window keys, under one mask for all blocks;
                the B keys too many are the waste, so blocks are small
    triangles   a block of `window` queries against the keys of its own block, a causal square, and
                against the block before, the other half of a square: causal again once queries and
                keys are reversed (strictly, so that one query and one key are left out)

Triangles waste nothing and share no key between blocks, which is what a backward wants: it has to
add up the gradients of shared keys.
"""

from collections.abc import Iterator
from typing import NamedTuple

FORWARD_BLOCK = 64
BACKWARD_BLOCKS = (64, 256)
# Beyond this window, triangles beat masked blocks in the backward, in spite of the reversed copies.
MASKED_BACKWARD_WINDOW = 512
# So few queries are masked in one rectangle rather than cut into a rectangle and a square.
CORNER = 64


class Tile(NamedTuple):
    """One call: `blocks` equal blocks of queries, each against its span of keys.

    Attributes:
        queries: all of the blocks' queries.
        keys: all of their keys; the span of the next block begins one block length later.
        blocks: how many blocks.
        causal: whether query r of a block sees its keys 0 … r.
        reversed: whether it sees its keys r + 1 … instead.
        band: (low, high) if query r of a block sees its keys r + low ≤ c < r + high; None for all
            of them, unless causal.
    """

    queries: slice
    keys: slice
    blocks: int = 1
    causal: bool = False
    reversed: bool = False
    band: tuple[int, int] | None = None

    @property
    def block(self) -> int:
        """Queries in a block."""
        return (self.queries.stop - self.queries.start) // self.blocks

    @property
    def span(self) -> int:
        """Keys of a block."""
        return self.keys.stop - self.keys.start - (self.blocks - 1) * self.block


def tiles(
    queries: int, keys: int, *, causal: bool, window: int | None, backward: bool
) -> Iterator[Tile]:
    """The calls that make up the attention of queries to keys that end together."""
    if not causal:
        yield Tile(slice(0, queries), slice(0, keys))
        return
    offset, window = keys - queries, keys if window is None else window
    head = min(max(window - offset, 0), queries)
    if head and offset and head <= CORNER:
        band = None if head == 1 else (-head, offset + 1)
        yield Tile(slice(0, head), slice(0, offset + head), band=band)
    elif head:
        if offset:
            yield Tile(slice(0, head), slice(0, offset))
        yield Tile(slice(0, head), slice(offset, offset + head), causal=True)
    cut = _triangles if backward and window > MASKED_BACKWARD_WINDOW else _masked
    low, high = BACKWARD_BLOCKS
    block = min(max(window, low), high) if backward else FORWARD_BLOCK
    block = window if cut is _triangles else block
    whole = (queries - head) // block
    rest = head + whole * block
    if whole:
        yield from cut(head, offset, block, whole, window)
    if rest < queries:
        yield from cut(rest, offset, queries - rest, 1, window)


def _masked(start: int, offset: int, block: int, blocks: int, window: int) -> Iterator[Tile]:
    queries = slice(start, start + block * blocks)
    keys = slice(offset + start - window, offset + queries.stop)
    yield Tile(queries, keys, blocks, band=(1, window + 1))


def _triangles(start: int, offset: int, block: int, blocks: int, window: int) -> Iterator[Tile]:
    queries, first = slice(start, start + block * blocks), offset + start
    yield Tile(queries, slice(first, first + block * blocks), blocks, causal=True)
    if block < window:  # the last block, alone
        yield Tile(queries, slice(first - window + block, first))
    before = slice(first - window, first - window + block * blocks)
    if block > 1:
        yield Tile(queries, before, blocks, reversed=True)
