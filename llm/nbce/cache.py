"""A cache whose layers are written in place, on the model's devices or on the host.

transformers' dynamic layer joins old and new keys with `torch.cat`, which copies everything for
each token; with many rows that takes longer than the model. Here a layer keeps a buffer with room
to spare, writes what is new into it and hands out a view of what is filled. A layer kept on the
host hands out a copy on the model's device, so that one layer at a time is there.

Every layer keeps all keys, in models with a sliding window too: the mask applies the window, and
any number of last tokens can be dropped.
"""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Room is added in steps of at least so many tokens, and of this share of what is there.
STEP = 64
GROWTH = 8


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, with room for more.

    Args:
        keys: (rows, heads, filled + room, key_dim), a buffer that this layer owns from now on.
        values: (rows, heads, filled + room, value_dim).
        filled: how many tokens are in it.
        device: where the model wants them; the buffers may lie elsewhere.
    """

    def __init__(
        self,
        keys: Float[Tensor, "rows heads capacity key_dim"],
        values: Float[Tensor, "rows heads capacity value_dim"],
        filled: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, device
        self.keys, self.values = keys[:, :, :filled], values[:, :, :filled]
        self._buffers = (keys, values)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes new keys and values behind the others and returns all of them."""
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        self._make_room(start, stop)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = states
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self._buffers)
        return self.keys.to(self.device), self.values.to(self.device)

    def get_seq_length(self) -> int:
        """How many tokens are in it."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def reset(self) -> None:
        """Drops all tokens and keeps the room."""
        self.keys, self.values = (buffer[:, :, :0] for buffer in self._buffers)

    def _make_room(self, start: int, stop: int) -> None:
        """New buffers where the old ones are full, or where the rows were changed from outside."""
        filled = [part for part in (self.keys, self.values) if part is not None]
        ours = all(
            part.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
            for part, buffer in zip(filled, self._buffers, strict=True)
        )
        if ours and stop <= self._buffers[0].shape[-2]:
            return
        room = stop + max(STEP, stop // GROWTH)
        keys, values = (part.new_empty(*part.shape[:2], room, part.shape[-1]) for part in filled)
        keys[:, :, :start], values[:, :, :start] = filled
        self._buffers = (keys, values)


def make_cache(layers: Iterable[RoomyLayer | None]) -> DynamicCache:
    """A cache of these layers; None stands for a layer that reads another layer's keys."""
    cache = DynamicCache()
    cache.layers.extend(DynamicLayer() if layer is None else layer for layer in layers)
    return cache


def states_of(cache: Any) -> list[tuple[Tensor, Tensor] | None]:
    """Keys and values, layer by layer; None for a layer that keeps none."""
    return [
        None if layer.keys is None or layer.values is None else (layer.keys, layer.values)
        for layer in cache.layers
    ]


def accepts(model: nn.Module, name: str) -> bool:
    """Whether the model's forward has this argument by name."""
    return name in inspect.signature(model.forward).parameters


def can_be_cut(model: nn.Module) -> bool:
    """Whether the model's cache holds keys and values per token and nothing else.

    Recurrent and hybrid layers keep a state of which no token can be taken out again, and caches of
    other kinds (compressed, indexed) are not known here.
    """
    if not (accepts(model, "past_key_values") and accepts(model, "attention_mask")):
        return False
    if getattr(model, "_is_stateful", False):
        return False
    config: Any = model.config
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    known = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return all(type(layer) in plain or type(layer).__name__ in known for layer in layers)
