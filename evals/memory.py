"""How many sequences fit into memory at once.

The estimate only has to be of the right size: it is halved whenever the machine says otherwise, and
what was learned is kept for the rest of the run.
"""

import os
from pathlib import Path
from typing import Any

import torch

from ropewalk.llm.device_memory import (
    USABLE,
    bytes_per_sequence,
    enough_tokens,
    free_memory,
    is_out_of_memory,
)

__all__ = ["batch_size", "bytes_per_sequence", "free_memory", "is_out_of_memory", "usable_threads"]


def batch_size(
    config: Any, *, length: int, scored: int, dtype: torch.dtype, device: torch.device
) -> int:
    """How many sequences to run at once: as many as pay off and fit, at least one."""
    each = bytes_per_sequence(config, length=length, scored=scored, itemsize=dtype.itemsize)
    fitting = int(USABLE * free_memory(device)) // each
    paying = enough_tokens(device) // length
    return max(1, min(fitting, paying))


def usable_threads() -> int:
    """Processors that this process may use: its affinity, within a container's quota."""
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, round(int(quota) / int(period))))
