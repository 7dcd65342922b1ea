"""Sizes of a program: a static table by width, no autotuning.

A row lies in a tile of two blocks, the greatest power of two in it and a smaller one for the rest,
1024 + 128 for 1152: one block of 2048 would compute almost as much for nothing as for something.
A thread has 16 and 2 elements of them in the forward and 8 and 1 in the backward, which has sums to
keep. What counts is that bytes are under way all the time: a program reads its next row before it
computes the one it has, and 16 warps of the forward or of the backward fit a multiprocessor.
"""

from dataclasses import dataclass

import torch

from ropewalk.kernels.chips import most_registers, processors
from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.sizes import ceil_divide, power_of_two

WIDEST = 8192
"""Columns of a row; from 5200 on some numbers of the backward leave the registers."""
ELEMENTS = {"forward": 18, "backward": 9}
"""Of a row that a thread has, at most, as long as there are warps."""
REGISTERS = {
    ("forward", 2): 128,
    ("forward", 4): 128,
    ("backward", 2): 128,
    ("backward", 4): 168,
}
"""Of a thread, by the size of an element: left alone, the assembler takes half as many again."""
MOST_WARPS = 16
WAVES = {"forward": 4, "backward": 2}
"""Programs for each that runs at once, where there is much to do: the last ones end together."""
ENOUGH_TOKENS = {"forward": 8, "backward": 16}
"""Of a program: what it reads and writes once hardly counts then."""
INTERPRETED_PART = 4
"""Of Triton's interpreter: small, so that small inputs have samples of several parts."""
SEARCHED, INTERPRETED_SEARCHED = 256, 2
"""Packed samples that a program looks at in one step."""
SUMMED_PLACES, SUMMED_COLUMNS = 8, 128
"""Of a tile of the sums of parts."""


@dataclass(frozen=True)
class Configuration:
    """Constants of a kernel; blocks are powers of two.

    Attributes:
        main: columns of its first block, all of them in the row.
        rest: columns of its second block, 0 for none.
        lanes: threads that share a row.
        vector: columns that a thread reads at a time.
        warps: of a program.
        registers: of a thread, at most.
    """

    main: int
    rest: int
    lanes: int
    vector: int
    warps: int
    registers: int

    def constants(self) -> dict[str, int]:
        """As the kernels and their launches take them."""
        return {
            "MAIN": self.main,
            "REST": self.rest,
            "LANES": self.lanes,
            "VECTOR": self.vector,
            "num_warps": self.warps,
            "maxnreg": self.registers,
        }


def configuration(kernel: str, dim: int, element_size: int) -> Configuration:
    """For rows of `dim` columns; `kernel` is "forward" or "backward"."""
    main = 1 << (dim.bit_length() - 1)
    rest = power_of_two(dim - main) if dim > main else 0
    most = ELEMENTS[kernel] * 32
    warps = min(MOST_WARPS, power_of_two(ceil_divide(main + rest, most)))
    if interpreted():
        warps = 1
    lanes = min(32 * warps, main)
    vector = min(16 // element_size, main // lanes)
    # The rest fills as many threads as the first block, so that each adds up its own.
    rest = max(lanes, rest) if rest else 0
    registers = min(REGISTERS[kernel, element_size], most_registers(warps))
    return Configuration(main, rest, lanes, vector, warps, registers)


def part_tokens(
    kernel: str, how: Configuration, samples: int, tokens: int, device: torch.device
) -> int:
    """Tokens that a program takes.

    Args:
        kernel: "forward" or "backward".
        how: the sizes of a tile.
        samples: how many there are.
        tokens: of all samples.
        device: where they are.
    """
    if interpreted():
        return INTERPRETED_PART
    at_once = max(1, 65536 // (32 * how.warps * how.registers)) * processors(device)
    few, many = (ceil_divide(tokens, at_once * waves) for waves in (1, WAVES[kernel]))
    wanted = max(1, many, min(few, ENOUGH_TOKENS[kernel]))
    each = ceil_divide(tokens, max(1, samples))
    return ceil_divide(each, ceil_divide(each, wanted)) if each else 1


def searched(packed: bool) -> int:
    """Samples that a program looks at in one step to find its own."""
    if not packed:
        return 1
    return INTERPRETED_SEARCHED if interpreted() else SEARCHED
