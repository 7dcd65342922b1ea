"""Reading contexts: each once, in waves that fit into memory, and their keys cut out of the batch.

What all rows begin with (`base`) is read once and copied in front of every context. The contexts of
a wave are padded on the right and read without a mask: under causal attention nothing sees a token
behind it, so the padding changes no key, whatever the position scheme. A wave holds contexts of
similar length; where memory fails, waves become half as large.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from ropewalk.llm.device_memory import (
    USABLE,
    enough_tokens,
    free_memory,
    is_out_of_memory,
)
from ropewalk.llm.nbce.cache import RoomyLayer, accepts, make_cache, states_of
from ropewalk.llm.nbce.devices import HOST, input_device
from ropewalk.llm.nbce.encoded import Kept, LayerStates, States
from ropewalk.llm.nbce.memory import forward_bytes
from ropewalk.llm.nbce.progress import Progress


class _UnknownCacheError(Exception):
    """The model filled its cache with something else than keys and values per token."""


@torch.no_grad()
def read_contexts(
    model: Any,
    base: Sequence[int],
    contexts: Sequence[Sequence[int]],
    *,
    rows_at_once: int | None = None,
    cache_device: torch.device | None = None,
) -> Kept | None:
    """Keys and values of contexts, without padding.

    Args:
        model: whose cache can be cut up, as `can_be_cut` says.
        base: tokens before every context.
        contexts: tokens of each, at least one.
        rows_at_once: the greatest wave; None leaves that to the memory.
        cache_device: where to keep them; None is the model's device unless they would take more
            than half of what is free there, and the host then.

    Returns:
        The keys and values; None if the cache turned out to hold something else.
    """
    try:
        return _read_contexts(model, base, contexts, rows_at_once, cache_device)
    except _UnknownCacheError:
        return None


def _read_contexts(
    model: Any,
    base: Sequence[int],
    contexts: Sequence[Sequence[int]],
    rows_at_once: int | None,
    cache_device: torch.device | None,
) -> Kept:
    shared = _forward(model, [base], DynamicCache()) if base else DynamicCache()
    # Similar lengths together; the longest first, so that what does not fit shows at once.
    queue = sorted(range(len(contexts)), key=lambda index: -len(contexts[index]))
    budget = _tokens_at_once(model, len(base), len(contexts[queue[0]]))
    home = _Home(cache_device, len(base) + sum(map(len, contexts)))
    devices: list[torch.device] = []
    kept_base: LayerStates = []
    kept: dict[int, LayerStates] = {}
    with Progress("reading contexts", sum(map(len, contexts))) as progress:
        while queue:
            longest = len(contexts[queue[0]])
            rows = queue[: min(max(1, budget // longest), rows_at_once or len(queue))]
            cache = _read_wave(model, shared, len(base), [contexts[index] for index in rows])
            if cache is None:
                budget = len(rows) * longest // 2
                continue
            if not kept:
                home.decide(cache)
                devices = _devices(cache, model)
                kept_base = home.cut(shared if base else cache, 0, 0, len(base))
            for row, index in enumerate(rows):
                stop = len(base) + len(contexts[index])
                kept[index] = home.cut(cache, row, len(base), stop)
            progress.advance(sum(len(contexts[index]) for index in rows))
            queue = queue[len(rows) :]
            # Not while the next wave is read.
            del cache
    return Kept(devices, kept_base, [kept[index] for index in range(len(contexts))])


class _Home:
    """Where states are kept.

    Args:
        asked: a device; None leaves it to the memory.
        tokens: how many there will be.
    """

    def __init__(self, asked: torch.device | None, tokens: int) -> None:
        self._device = asked
        self._tokens = tokens

    def decide(self, cache: Cache) -> None:
        """Chooses the host if the states of all tokens would take too much of what is free."""
        if self._device is not None:
            return
        filled = [part for states in states_of(cache) if states is not None for part in states]
        needed = sum(part.nbytes // (part.shape[0] * part.shape[2]) for part in filled)
        devices = {part.device for part in filled}
        if needed * self._tokens > USABLE * sum(map(free_memory, devices)):
            self._device = HOST

    def cut(self, cache: Cache, row: int, start: int, stop: int) -> LayerStates:
        """A copy of some tokens of a row."""
        return [
            None
            if states is None
            else States(*(self._copy(part[row, :, start:stop]) for part in states))
            for states in states_of(cache)
        ]

    def _copy(self, part: Tensor) -> Tensor:
        return part.to(self._device or part.device, copy=True).contiguous()


def _devices(cache: Cache, model: Any) -> list[torch.device]:
    """Where each layer of the model computes."""
    return [
        input_device(model) if states is None else states[0].device for states in states_of(cache)
    ]


def _read_wave(
    model: Any, shared: Cache, base: int, contexts: Sequence[Sequence[int]]
) -> Cache | None:
    """The cache after some contexts; None if memory failed and there were several."""
    try:
        cache = _expanded(shared, len(contexts), base + max(map(len, contexts)))
        return _forward(model, contexts, cache, base)
    except (RuntimeError, MemoryError) as error:
        if len(contexts) == 1 or not is_out_of_memory(error):
            raise
        return None


def _expanded(shared: Cache, rows: int, length: int) -> DynamicCache:
    """The shared tokens in front of every row, with room up to `length`."""
    layers: list[RoomyLayer | None] = []
    for states in states_of(shared):
        if states is None:
            layers.append(None)
            continue
        filled = states[0].shape[2]
        keys, values = (
            part.new_empty(rows, part.shape[1], length, part.shape[3]) for part in states
        )
        keys[:, :, :filled], values[:, :, :filled] = states
        layers.append(RoomyLayer(keys, values, filled, keys.device))
    return make_cache(layers)


def _forward(model: Any, rows: Sequence[Sequence[int]], cache: Cache, start: int = 0) -> Cache:
    """Reads rows of tokens, padded on the right, at positions from `start` on."""
    longest = max(map(len, rows))
    device = input_device(model)
    tokens = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows])
    inputs: dict[str, Any] = {
        "input_ids": tokens.to(device),
        "past_key_values": cache,
        "use_cache": True,
    }
    if accepts(model, "position_ids"):
        positions = torch.arange(start, start + longest, device=device)
        inputs["position_ids"] = positions.expand(len(rows), -1)
    if accepts(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    model(**inputs)
    return _checked(cache, len(rows), start + longest)


def _checked(cache: Cache, rows: int, length: int) -> Cache:
    """The cache, if it holds keys and values of so many tokens in each row."""
    filled = [part for states in states_of(cache) if states is not None for part in states]
    known = all(
        part.ndim == 4 and (part.shape[0], part.shape[2]) == (rows, length) for part in filled
    )
    if not filled or not known:
        raise _UnknownCacheError
    return cache


def _tokens_at_once(model: Any, base: int, longest: int) -> int:
    """How many tokens to read at once: as many as pay off and fit."""
    paying = enough_tokens(input_device(model))
    each = forward_bytes(model, base + longest)
    return (
        min(paying, int(USABLE * free_memory(input_device(model))) * longest // each)
        if each
        else paying
    )
