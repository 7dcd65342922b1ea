"""Tile sizes, warps and pipeline stages of every kernel: a table, not a search at run time.

Tiles were chosen by reasoning and not by the clock: the products move more than they compute, so
that on Hopper two programs share a processor and one loads while the other writes; what is smaller
than a tile takes a smaller one. tests/kernels/monarch/test_triton_compile.py compiles the kernels
ahead of time and finds each within its chip's shared memory and without a spilled register, with
Triton 3.7 as with 3.6. Chips:

    sm_90   Hopper and later data-centre chips, 227 KiB of shared memory a block
    sm_80   A100, 163 KiB
    small   everything else (sm_86, sm_89, sm_120), 99 KiB
"""

from typing import Literal, NamedTuple

import torch

from ropewalk.kernels.chips import Chip, chip, most_registers
from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.sizes import ceil_divide, power_of_two

Kernel = Literal["product", "gradient", "outer", "fused"]

LEAST = 16
"""Sides of the smallest tile that tensor cores multiply."""
SMALL = 64 * 64
"""Elements of a tile of the result up to which four warps are enough."""


class Sizes(NamedTuple):
    """Of a product: rows, columns, and what is summed over."""

    rows: int
    columns: int
    depth: int


class Configuration(NamedTuple):
    """How one kernel runs.

    Attributes:
        rows: of a tile of the result, mostly tokens.
        columns: of it.
        depth: what is summed over and loaded at once.
        warps: warps of a program.
        stages: loads in flight.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def launch(self) -> dict[str, int]:
        """Options of a launch."""
        return {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": most_registers(self.warps),
        }


INTERPRETED = Configuration(16, 16, 16, 4, 1)
"""Tiles of Triton's interpreter: small, so that small inputs meet every kind of tile."""

HALF: dict[Chip, dict[Kernel, Configuration]] = {
    "sm_90": {
        "product": Configuration(128, 128, 64, 8, 3),
        "gradient": Configuration(64, 128, 64, 4, 3),
        "outer": Configuration(128, 128, 64, 8, 3),
        "fused": Configuration(64, 256, 64, 8, 2),
    },
    "sm_80": {
        "product": Configuration(128, 128, 32, 8, 4),
        "gradient": Configuration(64, 128, 32, 4, 4),
        "outer": Configuration(128, 128, 32, 8, 4),
        "fused": Configuration(64, 256, 32, 8, 2),
    },
    "small": {
        "product": Configuration(128, 128, 32, 8, 3),
        "gradient": Configuration(64, 128, 32, 4, 3),
        "outer": Configuration(128, 128, 32, 8, 3),
        "fused": Configuration(64, 128, 32, 8, 2),
    },
}
"""16-bit elements."""

SINGLE: dict[Chip, dict[Kernel, Configuration]] = {
    "sm_90": {
        "product": Configuration(128, 128, 32, 8, 3),
        "gradient": Configuration(64, 128, 32, 8, 3),
        "outer": Configuration(128, 128, 32, 8, 3),
        "fused": Configuration(32, 128, 32, 8, 2),
    },
    "sm_80": {
        "product": Configuration(64, 128, 32, 8, 3),
        "gradient": Configuration(64, 128, 32, 8, 3),
        "outer": Configuration(64, 128, 32, 8, 3),
        "fused": Configuration(32, 128, 32, 8, 2),
    },
    "small": {
        "product": Configuration(64, 128, 32, 8, 3),
        "gradient": Configuration(64, 128, 32, 8, 3),
        "outer": Configuration(64, 128, 32, 8, 3),
        "fused": Configuration(32, 128, 32, 8, 2),
    },
}
"""32-bit elements."""

MOST_WARPS = 8
ELEMENTS = 16
"""Of a tile that are loaded one by one, for each thread."""

MOST_AWKWARD_COLUMNS = 128
"""Of a tile whose result is written one by one as well."""

WAVES = 2
"""Programs of the outer product for each processor, as far as there are tokens."""
PART_STEPS = 8
"""Steps that a part of the tokens has at least."""


def configuration(
    kernel: Kernel,
    sizes: Sizes,
    dtype: torch.dtype,
    device: torch.device,
    *,
    awkward: tuple[bool, bool] = (False, False),
) -> Configuration:
    """The shipped configuration of a kernel.

    Args:
        kernel: which one.
        sizes: of the product.
        dtype: of the tensors.
        device: where they are.
        awkward: whether what gives the rows, and what gives the columns, must be loaded element by
            element, which takes a register or three for each.
    """
    if interpreted():
        return INTERPRETED
    rows, columns, depth = sizes
    how = (HALF if dtype.itemsize == 2 else SINGLE)[chip(device)][kernel]
    fitted = how._replace(
        rows=_fitted(how.rows, rows),
        columns=_fitted(how.columns, columns),
        depth=_fitted(how.depth, depth),
    )
    if any(awkward):
        fitted = fitted._replace(columns=min(fitted.columns, MOST_AWKWARD_COLUMNS))
        sides = (fitted.rows, fitted.columns)
        longest = max(side for side, slow in zip(sides, awkward, strict=True) if slow)
        most = max(LEAST, ELEMENTS * 32 * MOST_WARPS // longest)
        fitted = fitted._replace(depth=min(fitted.depth, most), warps=MOST_WARPS)
    elif kernel != "fused" and fitted.rows * fitted.columns <= SMALL:
        fitted = fitted._replace(warps=min(4, how.warps))
    return fitted._replace(stages=1 if depth <= fitted.depth else how.stages)


def _fitted(most: int, size: int) -> int:
    """A side of a tile: no longer than the table says, nor than the size needs."""
    return max(LEAST, min(most, power_of_two(size)))


def token_parts(tokens: int, programs: int, how: Configuration, device: torch.device) -> int:
    """Parts that the tokens of an outer product are summed in.

    Args:
        tokens: how many there are.
        programs: of one part.
        how: the kernel's configuration.
        device: where it runs.
    """
    if interpreted():
        return min(2, ceil_divide(tokens, how.depth))
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    wanted = ceil_divide(WAVES * processors, programs)
    return max(1, min(wanted, tokens // (PART_STEPS * how.depth)))
