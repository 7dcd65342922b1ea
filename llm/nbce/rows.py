"""The batch that answers questions: one row per question and context, and one without context.

Row q·(n + 1) is question q without context, row q·(n + 1) + k + 1 has context k. A row is

    base | context k | separator and question q

and rows are as long as they are, so they are padded on the left. Of every row the last L tokens are
given to the model, where L is the longest question's length; what comes before is in the cache. A
row with a shorter question so reads the end of its context a second time, and the cached states of
those tokens are left out. Therefore all padding is at the very left, distances by index are the
true ones, and with explicit positions the result is that of each row alone under every position
scheme: rotary, learned, ALiBi.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ropewalk.llm.nbce.cache import RoomyLayer, accepts, make_cache
from ropewalk.llm.nbce.devices import HOST, input_device
from ropewalk.llm.nbce.encoded import EncodedContexts, Kept, States


def rows_of(encoded: EncodedContexts, tails: Sequence[Sequence[int]]) -> list[list[int]]:
    """The tokens of every row, question-major, the one without context first.

    Args:
        encoded: the contexts.
        tails: separator and question, of each question.
    """
    return [[*encoded.base, *context, *tail] for tail in tails for context in ([], *encoded.tokens)]


def assemble(
    model: Any,
    encoded: EncodedContexts,
    tails: Sequence[Sequence[int]],
    *,
    pad: int,
    room: int,
    on_host: bool = False,
) -> dict[str, Any]:
    """What `model.generate` takes to answer questions.

    Args:
        model: the model that read the contexts.
        encoded: the contexts.
        tails: separator and question, of each question.
        pad: token to pad with.
        room: how many new tokens the cache should hold before it has to grow.
        on_host: whether to keep the batch's cache on the host, one layer at a time on the device.

    Returns:
        input_ids (rows, L), attention_mask (rows, cached + L), position_ids (rows, L) if the model
        takes them, and past_key_values if the contexts' states were kept.
    """
    rows = rows_of(encoded, tails)
    lengths = [len(row) for row in rows]
    fed = max(map(len, tails)) if encoded.kept is not None else max(lengths)
    cached = [max(0, length - fed) for length in lengths]
    width = max(cached)
    tokens = [[pad] * (fed - len(row)) + row[-fed:] for row in rows]
    end = torch.tensor(lengths)[:, None]
    device = input_device(model)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor(tokens).to(device),
        "attention_mask": (torch.arange(width + fed) >= width + fed - end).long().to(device),
    }
    if accepts(model, "position_ids"):
        positions = (end - fed + torch.arange(fed)).clamp(min=0)
        inputs["position_ids"] = positions.to(device)
    if encoded.kept is not None:
        layers = _layers(encoded.kept, cached, width, width + fed + room, on_host)
        inputs["past_key_values"] = make_cache(layers)
    return inputs


def _layers(
    kept: Kept, cached: Sequence[int], width: int, capacity: int, on_host: bool
) -> list[RoomyLayer | None]:
    layers: list[RoomyLayer | None] = []
    for number, device in enumerate(kept.devices):
        base = kept.base[number]
        contexts = [None, *(context[number] for context in kept.contexts)]
        if base is None:
            layers.append(None)
            continue
        buffers = [
            part.new_empty(
                (len(cached), part.shape[0], capacity, part.shape[2]),
                device=HOST if on_host else device,
            )
            for part in base
        ]
        for row, count in enumerate(cached):
            _fill(buffers, row, width - count, count, base, contexts[row % len(contexts)])
        layers.append(RoomyLayer(buffers[0], buffers[1], width, device))
    return layers


def _fill(
    buffers: Sequence[Tensor],
    row: int,
    start: int,
    count: int,
    base: States,
    context: States | None,
) -> None:
    """Writes the first `count` tokens of base and context into a row, from `start` on."""
    from_base = min(count, base.keys.shape[1])
    middle = start + from_base
    # Memory that was never written may hold NaN, which a mask does not hide in the values.
    for buffer, states in zip(buffers, base, strict=True):
        buffer[row, :, :start] = 0
        buffer[row, :, start:middle] = states[:, :from_base]
    if context is not None:
        for buffer, states in zip(buffers, context, strict=True):
            buffer[row, :, middle : start + count] = states[:, : count - from_base]
