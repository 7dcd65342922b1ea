"""Tile sizes, warps and pipeline stages of every kernel: a table, not a search at run time.

Tiles were chosen by reasoning and not by the clock: the larger a tile, the less often the other
side is read again, and tensor cores want whole fragments (on Hopper 64 rows to four warps), up to
where registers would spill. tests/kernels/rotary_attention/test_triton_compile.py compiles the
kernels ahead of time and finds each within its chip's shared memory and without a spilled register:
on sm_90 and sm_80 every entry of HALF and SINGLE; of AWKWARD, and of `small` as sm_89, those that
its lists name. That holds for the pinned Triton 3.7; 3.6 was seen to spill 8 to 32 bytes in seven
forward cases of 16 bits on sm_80 and one on sm_89, and none on sm_90. Chips:

    sm_90   Hopper and later data-centre chips, 227 KiB of shared memory a block
    sm_80   A100, 163 KiB
    small   everything else (sm_86, sm_89, sm_120), 99 KiB

Tiles shrink as heads grow, because a tile of queries or keys is that wide, and for float32, whose
elements take twice the room. *Heavy* problems have a mask, a cap, positions of their own or three
branches, and need registers for them; all others are light.
"""

from typing import Literal, NamedTuple

from ropewalk.kernels.chips import Chip
from ropewalk.kernels.sizes import power_of_two

Kernel = Literal["forward", "query", "key"]


class Configuration(NamedTuple):
    """How one kernel runs.

    Attributes:
        rows: queries in a tile.
        columns: keys in a tile.
        warps: warps of a program.
        stages: loads in flight in a loop.
    """

    rows: int
    columns: int
    warps: int
    stages: int


INTERPRETED = Configuration(16, 16, 4, 1)
"""Tiles of Triton's interpreter: small, so that small inputs meet every kind of tile."""

# By the width of a head rounded up to a power of two, at least 64: the light one, the heavy one.
Table = dict[Kernel, dict[int, tuple[Configuration, Configuration]]]

HALF: dict[Chip, Table] = {
    "sm_90": {
        "forward": {
            64: (Configuration(128, 64, 8, 3), Configuration(128, 32, 8, 3)),
            128: (Configuration(128, 64, 8, 3), Configuration(128, 32, 8, 3)),
            256: (Configuration(64, 32, 8, 1), Configuration(32, 32, 8, 1)),
        },
        "query": {
            64: (Configuration(128, 64, 8, 2), Configuration(128, 64, 8, 2)),
            128: (Configuration(128, 32, 8, 3), Configuration(128, 32, 8, 2)),
            256: (Configuration(32, 32, 4, 1), Configuration(32, 32, 4, 1)),
        },
        "key": {
            64: (Configuration(64, 128, 8, 2), Configuration(32, 128, 8, 2)),
            128: (Configuration(16, 128, 8, 3), Configuration(32, 32, 8, 2)),
            256: (Configuration(32, 32, 8, 1), Configuration(32, 32, 8, 1)),
        },
    },
    "sm_80": {
        "forward": {
            64: (Configuration(128, 128, 8, 2), Configuration(128, 64, 8, 3)),
            128: (Configuration(64, 64, 4, 3), Configuration(64, 64, 8, 2)),
            256: (Configuration(64, 64, 8, 2), Configuration(32, 32, 8, 2)),
        },
        "query": {
            64: (Configuration(128, 64, 8, 2), Configuration(128, 32, 8, 2)),
            128: (Configuration(64, 64, 8, 2), Configuration(64, 64, 8, 2)),
            256: (Configuration(32, 64, 8, 1), Configuration(64, 64, 8, 1)),
        },
        "key": {
            64: (Configuration(32, 128, 8, 2), Configuration(32, 32, 4, 2)),
            128: (Configuration(32, 64, 8, 2), Configuration(32, 64, 8, 2)),
            256: (Configuration(32, 32, 8, 1), Configuration(32, 32, 8, 1)),
        },
    },
    "small": {
        "forward": {
            64: (Configuration(128, 64, 8, 3), Configuration(64, 32, 4, 2)),
            128: (Configuration(64, 64, 4, 3), Configuration(64, 64, 8, 2)),
            256: (Configuration(64, 32, 8, 2), Configuration(64, 32, 8, 2)),
        },
        "query": {
            64: (Configuration(128, 64, 8, 2), Configuration(128, 32, 8, 2)),
            128: (Configuration(64, 64, 8, 2), Configuration(64, 64, 8, 2)),
            256: (Configuration(32, 32, 4, 1), Configuration(64, 32, 8, 1)),
        },
        "key": {
            64: (Configuration(32, 128, 8, 2), Configuration(32, 32, 4, 2)),
            128: (Configuration(32, 64, 8, 2), Configuration(32, 64, 8, 2)),
            256: (Configuration(32, 32, 8, 1), Configuration(32, 32, 8, 1)),
        },
    },
}
"""16-bit elements."""

SINGLE: dict[Chip, Table] = {
    "sm_90": {
        "forward": {
            64: (Configuration(32, 32, 4, 1), Configuration(32, 32, 4, 1)),
            128: (Configuration(32, 32, 8, 1), Configuration(32, 32, 8, 1)),
            256: (Configuration(16, 16, 8, 1), Configuration(16, 16, 8, 1)),
        },
        "query": {
            64: (Configuration(64, 32, 8, 2), Configuration(64, 32, 8, 2)),
            128: (Configuration(32, 16, 8, 1), Configuration(32, 16, 8, 1)),
            256: (Configuration(32, 32, 8, 1), Configuration(16, 16, 8, 1)),
        },
        "key": {
            64: (Configuration(16, 32, 8, 1), Configuration(32, 16, 8, 1)),
            128: (Configuration(16, 16, 4, 1), Configuration(16, 16, 4, 1)),
            256: (Configuration(16, 32, 8, 1), Configuration(16, 16, 16, 1)),
        },
    },
    "sm_80": {
        "forward": {
            64: (Configuration(32, 32, 4, 2), Configuration(32, 32, 4, 2)),
            128: (Configuration(32, 32, 8, 1), Configuration(32, 32, 8, 1)),
            256: (Configuration(16, 16, 8, 1), Configuration(16, 16, 8, 1)),
        },
        "query": {
            64: (Configuration(32, 32, 4, 2), Configuration(32, 32, 4, 2)),
            128: (Configuration(32, 16, 8, 1), Configuration(16, 16, 4, 1)),
            256: (Configuration(32, 32, 8, 1), Configuration(16, 16, 8, 1)),
        },
        "key": {
            64: (Configuration(16, 32, 4, 1), Configuration(16, 32, 4, 1)),
            128: (Configuration(16, 16, 4, 1), Configuration(16, 16, 4, 1)),
            256: (Configuration(16, 32, 8, 1), Configuration(16, 32, 8, 1)),
        },
    },
    "small": {
        "forward": {
            64: (Configuration(32, 32, 4, 2), Configuration(32, 32, 4, 2)),
            128: (Configuration(32, 32, 8, 1), Configuration(32, 32, 8, 1)),
            256: (Configuration(16, 16, 8, 1), Configuration(16, 16, 8, 1)),
        },
        "query": {
            64: (Configuration(32, 32, 4, 2), Configuration(32, 32, 4, 2)),
            128: (Configuration(32, 16, 8, 1), Configuration(32, 16, 8, 1)),
            256: (Configuration(16, 16, 8, 1), Configuration(16, 16, 4, 1)),
        },
        "key": {
            64: (Configuration(32, 32, 8, 1), Configuration(16, 32, 8, 1)),
            128: (Configuration(16, 32, 8, 1), Configuration(16, 16, 8, 1)),
            256: (Configuration(16, 16, 8, 1), Configuration(16, 16, 16, 1)),
        },
    },
}
"""32-bit elements."""

AWKWARD: dict[int, dict[Kernel, dict[int, Configuration]]] = {
    2: {
        "forward": {
            64: Configuration(64, 32, 8, 1),
            128: Configuration(32, 16, 8, 1),
            256: Configuration(16, 16, 8, 1),
        },
        "query": {
            64: Configuration(64, 32, 4, 2),
            128: Configuration(32, 32, 8, 1),
            256: Configuration(16, 16, 8, 1),
        },
        "key": {
            64: Configuration(16, 64, 4, 2),
            128: Configuration(32, 32, 8, 1),
            256: Configuration(16, 16, 8, 1),
        },
    },
    4: {
        "forward": {
            64: Configuration(32, 32, 8, 1),
            128: Configuration(16, 16, 8, 1),
            256: Configuration(16, 16, 8, 1),
        },
        "query": {
            64: Configuration(16, 32, 4, 1),
            128: Configuration(16, 16, 4, 1),
            256: Configuration(16, 16, 8, 1),
        },
        "key": {
            64: Configuration(16, 32, 8, 1),
            128: Configuration(16, 32, 8, 1),
            256: Configuration(16, 16, 8, 1),
        },
    },
}
"""Awkward heads, by bytes of an element, of every chip and light or heavy alike."""


def awkward(head_dim: int, value_dim: int, itemsize: int) -> bool:
    """Whether heads are such that the tables' tiles would spill.

    So it is in float32 where dimensions are masked off, and where values are the wider ones, which
    the tables do not foresee.
    """
    widths = head_dim, value_dim
    masked = itemsize > 2 and any(width != power_of_two(width) for width in widths)
    return masked or power_of_two(value_dim) > power_of_two(head_dim)


def configuration(
    kernel: Kernel, head_dim: int, value_dim: int, itemsize: int, chip: Chip, *, heavy: bool
) -> Configuration:
    """The shipped configuration of a kernel.

    Args:
        kernel: which one.
        head_dim: width of a query or key, `value_dim` of a value.
        itemsize: bytes of an element.
        chip: see the module's docstring.
        heavy: whether the problem takes more registers than the ordinary one.
    """
    width = max(64, power_of_two(max(head_dim, value_dim)))
    if awkward(head_dim, value_dim, itemsize):
        return AWKWARD[itemsize][kernel][width]
    return (HALF if itemsize == 2 else SINGLE)[chip][kernel][width][heavy]
