"""Sizes of every kernel's programs: a table, not a search at run time.

Chosen by reasoning and not by the clock. A program of the statistics holds a split of 8192 logits
in registers, 32 a thread, so that four programs of a multiprocessor have 64 KiB under way, and 33
rows of 128k make 528 programs. The threshold's searches keep a sum for each section and logit of a
tile, 32 a thread at most, so that two programs of eight warps search at a time on a multiprocessor.
Among many logits there are fewer sections: the work of a look is in proportion to them, the bits
that it decides only their logarithm; among few the looks count, each of which waits for its sums.
"""

from dataclasses import dataclass

from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.sizes import ceil_divide

FEW_ROWS = 128
"""Rows up to which each has a multiprocessor of a large GPU to itself."""


@dataclass(frozen=True)
class Search:
    """A search by sections.

    Attributes:
        ways: thresholds that are tried in one look.
        tile: what is looked at together: maxima, or blocks of logits.
    """

    ways: int
    tile: int


@dataclass(frozen=True)
class Configuration:
    """How the kernels run; sizes are powers of two.

    Attributes:
        width: logits of a block, of which maximum and mass are kept.
        blocks: blocks of a split, which one program holds.
        statistics_warps: of that program.
        bound: the search among the blocks' maxima and masses.
        looks: how many looks it takes.
        few: blocks up to which the search among their logits is the fine one.
        fine: the search among few blocks.
        coarse: the search among many.
        search_warps: of the program that searches a row, where rows are few, and where many.
        columns: of a tile of the merge.
        merge_warps: of its program.
        parts: tiles' sums that are added up together.
    """

    width: int = 128
    blocks: int = 64
    statistics_warps: int = 8
    bound: Search = Search(8, 1024)
    looks: int = 4
    few: int = 64
    fine: Search = Search(8, 8)
    coarse: Search = Search(4, 16)
    search_warps: tuple[int, int] = (16, 8)
    columns: int = 1024
    merge_warps: int = 4
    parts: int = 128

    def threshold_warps(self, rows: int) -> int:
        """Warps of the program that searches a row: many where rows leave processors idle."""
        return self.search_warps[rows > FEW_ROWS]


LARGE = Configuration()
SMALL = Configuration(
    blocks=8,
    statistics_warps=1,
    bound=Search(8, 16),
    fine=Search(8, 2),
    coarse=Search(8, 2),
    search_warps=(2, 2),
    columns=256,
    merge_warps=2,
    parts=16,
)
"""Vocabularies of bytes: one split."""
INTERPRETED = Configuration(
    width=4,
    blocks=4,
    bound=Search(4, 8),
    looks=2,
    few=3,
    fine=Search(8, 2),
    coarse=Search(8, 4),
    columns=32,
    parts=2,
)
"""Of Triton's interpreter: small, so that small inputs meet every kind of tile."""


def configuration(vocabulary: int) -> Configuration:
    """The shipped configuration for a vocabulary."""
    if interpreted():
        return INTERPRETED
    return SMALL if vocabulary <= SMALL.width * SMALL.blocks else LARGE


def row_splits(vocabulary: int, how: Configuration) -> tuple[int, int]:
    """(blocks of a row, splits of a row)."""
    blocks = ceil_divide(vocabulary, how.width)
    return blocks, ceil_divide(blocks, how.blocks)
