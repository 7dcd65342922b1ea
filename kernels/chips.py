"""NVIDIA's chips, as far as the tables of tile sizes tell them apart.

sm_90   Hopper and later data-centre chips, 227 KiB of shared memory a block
sm_80   A100, 163 KiB
small   everything else (sm_86, sm_89, sm_120), 99 KiB
"""

from typing import Literal

import torch
from torch import Tensor

Chip = Literal["sm_90", "sm_80", "small"]
PROVEN = (8, 0)
"""The oldest compute capability that kernels are compiled for in the tests."""


def chip(device: torch.device) -> Chip:
    """Which column of a table a device takes."""
    major, minor = torch.cuda.get_device_capability(device)
    if major in (9, 10):
        return "sm_90"
    return "sm_80" if (major, minor) == (8, 0) else "small"


def too_old(x: Tensor) -> str | None:
    """Why kernels cannot run on the device of a tensor, or None."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < PROVEN:
        return "its kernels are proven for compute capability 8.0 and later"
    return None


def most_registers(warps: int) -> int:
    """Registers that a thread can have in a program of so many warps.

    Said at a launch: left alone, the assembler spills a little to fit more programs.
    """
    return min(255, 65536 // (32 * warps))


def processors(device: torch.device) -> int:
    """Multiprocessors of a device."""
    return torch.cuda.get_device_properties(device).multi_processor_count
