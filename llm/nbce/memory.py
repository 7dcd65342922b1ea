"""What rows of a batch take, roughly; whoever uses it halves the batch where it was too little."""

from typing import Any

import torch

from ropewalk.llm.device_memory import bytes_per_sequence

# Copies of a row of logits in float32 that merging has at the same time, at most.
MERGING = 6


def forward_bytes(model: Any, length: int) -> int:
    """About what a forward pass takes for each row, without the cache.

    Args:
        model: the model.
        length: tokens of a row.

    Returns:
        Bytes; 0 where the model's configuration does not say its sizes.
    """
    try:
        return bytes_per_sequence(
            model.config, length=length, scored=1, itemsize=model.dtype.itemsize
        )
    except AttributeError:
        return 0


def merging_bytes(model: Any) -> int:
    """About what merging takes for each row."""
    vocabulary = getattr(model.config.get_text_config(), "vocab_size", 0)
    return vocabulary * MERGING * torch.float32.itemsize
