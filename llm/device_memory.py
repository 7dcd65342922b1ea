"""What is free on a device, what a batch takes there, and whether an allocation failed.

The estimate only has to be of the right size: whoever uses it halves the batch whenever the machine
says otherwise.
"""

import os
from pathlib import Path
from typing import Any

import torch

# Tokens in a batch beyond which a larger one no longer runs faster.
ENOUGH_TOKENS = {"cpu": 4096, "cuda": 131_072}
# Share of the free memory that a batch may take by the estimate, which leaves room for its error.
USABLE = 0.5
QUERY_BLOCK = 512


def enough_tokens(device: torch.device) -> int:
    """Tokens in a batch beyond which a larger one no longer runs faster on `device`."""
    return ENOUGH_TOKENS.get(device.type, ENOUGH_TOKENS["cpu"])


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`, within the limit of a container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = _free_host_memory()
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
    except OSError:
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - int(used)))


def _free_host_memory() -> int:
    try:
        import psutil
    except ImportError:
        # psutil comes with the evaluations only. This leaves out what the system could give up.
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return psutil.virtual_memory().available


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
    heads = _largest(text.num_attention_heads)
    inner = _largest(getattr(text, "intermediate_size", None) or 4 * hidden)
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    activations = length * itemsize * (6 * hidden + 3 * inner + 4 * heads * head_dim)
    rotated = length * 4 * 6 * heads * head_dim
    scores = heads * min(length, QUERY_BLOCK) * length * 4 * 3
    logits = scored * text.vocab_size * (2 * itemsize + 4)
    return activations + rotated + scores + logits


def _largest(size: int | list[int]) -> int:
    """Some models have a size of its own for each layer."""
    return max(size) if isinstance(size, list) else size


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
