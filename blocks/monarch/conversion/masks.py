"""Which positions of a batch are padding, and of which layers' inputs that can be told.

A mask (batch, seq) belongs to inputs (batch, seq, …) or (batch·seq, …). In a model with an encoder
and a decoder there are two lengths; an input whose shape could be of either is taken whole.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# The name that models have for it.
MASK = "attention_mask"
# What decoders of encoder-decoder models read; its length is theirs.
_DECODER = ("decoder_input_ids", "decoder_inputs_embeds", "labels")


class PaddingMasks:
    """The masks of one batch.

    Args:
        batch: the arguments of the model, by name.
        two_lengths: whether the model has an encoder and a decoder.
    """

    def __init__(self, batch: Mapping[str, Any], *, two_lengths: bool) -> None:
        self._masks: list[Tensor] = []
        # Of positions that have no mask of their own.
        self._unmasked: list[tuple[int, ...]] = []
        self._add(batch.get(MASK))
        if two_lengths:
            own = batch.get("decoder_attention_mask")
            self._add(own)
            if not isinstance(own, Tensor):
                read = (batch.get(name) for name in _DECODER)
                self._unmasked += [tuple(x.shape[:2]) for x in read if isinstance(x, Tensor)]

    def _add(self, mask: object) -> None:
        if isinstance(mask, Tensor) and mask.ndim == 2:
            self._masks.append(mask != 0)

    def rows(self, x: Tensor) -> Tensor:
        """The rows (n, features) of a layer's input that are no padding, as far as can be told."""
        rows = x.flatten(0, -2) if x.ndim != 1 else x[None]
        fitting = [mask for mask in self._masks if _fits(x, tuple(mask.shape))]
        if not fitting or any(_fits(x, shape) for shape in self._unmasked):
            return rows
        if any(not torch.equal(fitting[0], other) for other in fitting[1:]):
            return rows
        mask = fitting[0].to(x.device)
        if x.ndim > 2:  # more axes after the positions: heads, for one
            inner = x.shape[2:-1].numel()
            return rows[mask.flatten().repeat_interleave(inner)]
        return rows[mask.flatten()]


def _fits(x: Tensor, shape: tuple[int, ...]) -> bool:
    if x.ndim > 2:
        return tuple(x.shape[:2]) == shape
    return x.ndim == 2 and x.shape[0] == shape[0] * shape[1]
