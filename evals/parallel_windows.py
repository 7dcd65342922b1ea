"""Parallel context windows: contexts side by side in one cache, the question attending to them all.

Each context is read alone, at positions 0, 1, …; their keys and values are put one after the other,
and what is asked is read after them, at the positions that follow the longest context. No position
is larger than in training, as in NBCE, but the contexts are merged inside the attention instead of
in the distributions (Ratner et al., arXiv 2212.10947, §2). The model's first tokens, such as a
begin-of-text token, are kept with the first context only, as there.

The cache holds keys that are rotated already, so this is for a model as it is: distance rules keep
theirs unrotated and measure by place in the sequence. Layers with a sliding window would see the
last contexts only, so models that have such layers are left out.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.evals.logits import last_logits
from ropewalk.evals.tasks.task import Sample


def has_parallel_windows(config: Any) -> bool:
    """Whether every layer of a model with this configuration attends to all that was read."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds:
        return set(kinds) == {"full_attention"}
    return getattr(text, "sliding_window", None) is None


def parallel_window_logits(
    model: Any, sample: Sample, *, at_once: int, device: torch.device
) -> Float[Tensor, "scored vocabulary"]:
    """Logits of the sample's scored tokens with its contexts as parallel windows.

    Args:
        model: a causal language model of transformers whose layers all keep their whole cache.
        sample: with at least one context.
        at_once: contexts of equal length that are read in one batch at most.
        device: where the model is.
    """
    from transformers import DynamicCache

    prefix = torch.from_numpy(sample.prefix).to(device)
    contexts = [torch.from_numpy(context).to(device) for context in sample.contexts]
    layers: list[list[tuple[Tensor, Tensor]]] = [[] for _ in contexts]
    for group in _equally_long(contexts, at_once):
        cache = DynamicCache()
        tokens = torch.stack([torch.cat([prefix, contexts[index]]) for index in group])
        last_logits(model, 1, input_ids=tokens, past_key_values=cache, use_cache=True)
        for row, index in enumerate(group):
            start = 0 if index == 0 else len(prefix)
            layers[index] = [
                (keys[row : row + 1, :, start:], values[row : row + 1, :, start:])
                for keys, values, *_ in cast("Iterable[tuple[Tensor, ...]]", cache)
            ]
    windows = DynamicCache()
    for number, of_layer in enumerate(zip(*layers, strict=True)):
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*of_layer, strict=True))
        windows.update(keys, values, number)
    tokens = torch.from_numpy(sample.tokens[:-1]).to(device)[None]
    longest = len(prefix) + max(len(context) for context in contexts)
    positions = longest + torch.arange(tokens.shape[1], device=device)[None]
    (logits,) = last_logits(
        model,
        sample.scored,
        input_ids=tokens,
        position_ids=positions,
        past_key_values=windows,
        use_cache=True,
    )
    return logits


def _equally_long(contexts: Sequence[Tensor], at_once: int) -> list[list[int]]:
    """Numbers of contexts of the same length, at most `at_once` together."""
    by_length: dict[int, list[int]] = {}
    for index, context in enumerate(contexts):
        by_length.setdefault(len(context), []).append(index)
    return [
        group[start : start + at_once]
        for group in by_length.values()
        for start in range(0, len(group), at_once)
    ]
