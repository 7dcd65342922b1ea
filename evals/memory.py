"""How many sequences fit into memory at once.

The estimate only has to be of the right size: it is halved whenever the machine says otherwise, and
what was learned is kept for the rest of the run.
"""

import os
from pathlib import Path
from typing import Any

import psutil
import torch

# Tokens in a batch beyond which a larger one no longer runs faster.
ENOUGH_TOKENS = {"cpu": 4096, "cuda": 131_072}
# Share of the free memory that a batch may take by the estimate, which leaves room for its error.
USABLE = 0.5
QUERY_BLOCK = 512


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`, within the limit of a container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def bytes_per_sequence(config: Any, *, length: int, scored: int, itemsize: int) -> int:
    """Estimate of what one sequence takes in a forward pass without cache.

    Args:
        config: the model's configuration.
        length: tokens of the sequence.
        scored: tokens whose logits are computed.
        itemsize: bytes of the model's dtype.
    """
    text = config.get_text_config()
    hidden = text.hidden_size
    heads = text.num_attention_heads
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    activations = length * itemsize * (6 * hidden + 3 * inner + 4 * heads * head_dim)
    rotated = length * 4 * 6 * heads * head_dim
    scores = heads * min(length, QUERY_BLOCK) * length * 4 * 3
    logits = scored * text.vocab_size * (2 * itemsize + 4)
    return activations + rotated + scores + logits


def batch_size(
    config: Any, *, length: int, scored: int, dtype: torch.dtype, device: torch.device
) -> int:
    """How many sequences to run at once: as many as pay off and fit, at least one."""
    each = bytes_per_sequence(config, length=length, scored=scored, itemsize=dtype.itemsize)
    fitting = int(USABLE * free_memory(device)) // each
    paying = ENOUGH_TOKENS.get(device.type, ENOUGH_TOKENS["cpu"]) // length
    return max(1, min(fitting, paying))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that an allocation failed, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in message
        or "not enough memory" in message
        or "out of memory" in message
    )


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
