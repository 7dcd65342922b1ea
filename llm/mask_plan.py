"""Which keys exist, where, and which are padding: one small tensor in the place of the mask.

transformers builds the mask in one function (`AttentionMaskInterface`) and uses it in another
(`AttentionInterface`); between them lie the model's own code, `generate` and gradient
checkpointing, which pass a 4-D tensor on untouched. A distance rule needs positions rather than a
mask, so the mask function writes them into an int64 tensor of shape (batch, 1, rows, key + query):

    INDEX    index in the whole sequence, counting every token that ever entered the cache
    WINDOW   the sliding window, 0 for none (a constant row)
    SHIFTED  INDEX minus the index of the row's first token that is not padding
    COUNT    tokens that are not padding before this one
    VALID    1 unless padding or a slot of a static cache that is still empty

The columns are the keys, then the queries. Without padding only the first two rows are there. That
is linear in the lengths, where a mask would be quadratic, and it holds for every cache: a static
one has slots beyond the last token, a sliding one begins at a later index than 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

INDEX, WINDOW, SHIFTED, COUNT, VALID = range(5)


class KeysAndQueries(NamedTuple):
    """Where the queries and keys of one attention call are.

    Attributes:
        query_positions: int64 (1 | batch, query).
        key_positions: int64 (1 | batch, key); slots not yet filled lie after every query.
        visible: (batch, 1, 1, key), False at padding; None if there is none.
    """

    query_positions: Int[Tensor, "_batch query"]
    key_positions: Int[Tensor, "_batch key"]
    visible: Bool[Tensor, "batch 1 1 key"] | None


def make_plan(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Bool[Tensor, "batch seq"] | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **_: Any,
) -> Tensor:
    """The mask function that transformers calls, registered as "ropewalk".

    Args:
        batch_size: rows of the batch.
        q_length: queries of this call.
        kv_length: keys that the cache will return, filled or not.
        q_offset: index of the first query.
        kv_offset: index of the first key.
        mask_function: the pattern; causal and sliding-window patterns are recognised.
        attention_mask: False at padding, over all tokens so far.
        local_size: the sliding window, or the chunk, of a local pattern.
        allow_is_causal_skip: False if something was laid over the pattern.
        use_vmap: True if the model lays a pattern of its own over it.
        device: where to put the plan.
        config: the model's configuration.

    Returns:
        The plan, or a boolean mask (batch, 1, query, key) for a pattern that is neither causal nor
        sliding, such as packed sequences.

    Raises:
        ValueError: queries may see later keys.
    """
    if use_vmap or getattr(mask_function, "__name__", "") == "or_mask":
        raise ValueError(
            "expected a causal mask, got one that the model extends by a pattern of its own (such "
            "as image tokens that see each other); unplug the model for such inputs"
        )
    # What is laid over a sliding pattern is told apart by the skip it forbids; while decoding into
    # a static cache the skip is forbidden anyway, but then nothing can be laid over.
    chunk = getattr(config, "attention_chunk_size", None)
    sliding = (
        local_size is not None
        and (chunk is None or chunk != local_size)
        and (allow_is_causal_skip or q_length == 1)
    )
    if mask_function is not causal_mask_function and not sliding:
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,  # type: ignore[arg-type]
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            device=device,
        )  # type: ignore[return-value]

    index = torch.cat(
        (
            torch.arange(kv_length, device=device) + kv_offset,
            torch.arange(q_length, device=device) + q_offset,
        )
    )
    window = torch.full_like(index, local_size if sliding and local_size is not None else 0)
    padded = attention_mask is not None and not (
        # Reading the mask's values would break a graph that is being compiled.
        not torch.compiler.is_compiling() and bool(attention_mask.all())
    )
    if not padded or attention_mask is None:
        return torch.stack((index, window))[None, None]
    total = int(attention_mask.shape[-1])
    inside = index < total
    column = index.clamp(max=total - 1)
    tokens = attention_mask.to(torch.int64)
    count = tokens.cumsum(-1)
    first = tokens.argmax(-1, keepdim=True)
    before = torch.where(inside, (count - tokens)[:, column], count[:, -1:])
    rows = (
        index.expand(batch_size, -1),
        window.expand(batch_size, -1),
        index - first,
        before,
        tokens[:, column] * inside,
    )
    return torch.stack(rows, dim=1)[:, None]


def read_plan(
    plan: Int[Tensor, "_batch 1 rows columns"],
    position_ids: Int[Tensor, "_batch query"],
    keys: int,
) -> KeysAndQueries:
    """Positions of keys and queries from a plan and the positions the model gave to its queries.

    Queries keep their positions, and the keys that came with them too. Keys of earlier calls are
    counted back from there, padding left out, as `generate` counts. Where a model was not told
    about the padding and its positions are plain indices, a row is shifted so that its first token
    is at 0: no distance changes, and a padded row then equals the unpadded one under rules that
    look at more than distances (log n, groups, chunks).

    Args:
        plan: from `make_plan`.
        position_ids: the model's positions of the queries.
        keys: how many keys the cache returned.

    Raises:
        ValueError: the plan describes another number of keys, or positions do not grow.
    """
    check_plan(plan, position_ids, keys)
    queries = position_ids.shape[-1]
    index = plan[:, 0, INDEX]
    key_index, query_index = index[:, :keys], index[:, keys:]
    _refuse_restarts(position_ids, None if plan.shape[2] == 2 else plan[:, 0, VALID, keys:])
    if keys == queries and plan.shape[2] == 2:
        # Nothing comes from earlier calls and there is no padding.
        return KeysAndQueries(position_ids, position_ids, None)

    first, last = query_index[:, :1], query_index[:, -1:]
    here = position_ids.expand(max(position_ids.shape[0], plan.shape[0]), -1)
    column = (key_index - first).clamp(0, queries - 1).expand(here.shape[0], -1)
    of_this_call = here.gather(1, column)
    is_past, is_future = key_index < first, key_index > last
    if plan.shape[2] == 2:
        past = position_ids[:, :1] - (first - key_index)
        future = position_ids[:, -1:] + (key_index - last)
        positions = torch.where(is_past, past, torch.where(is_future, future, of_this_call))
        return KeysAndQueries(position_ids, positions, None)

    shifted, count, valid = plan[:, 0, SHIFTED], plan[:, 0, COUNT], plan[:, 0, VALID].bool()
    query_valid = valid[:, keys:]
    anchor = query_valid.to(torch.int64).argmax(-1, keepdim=True)
    past = here.gather(1, anchor) - (count[:, keys:].gather(1, anchor) - count[:, :keys])
    by_index = ((here == query_index) | ~query_valid).all(-1, keepdim=True)
    key_positions = torch.where(
        by_index, shifted[:, :keys], torch.where(is_past, past, of_this_call)
    )
    query_positions = torch.where(by_index, shifted[:, keys:], here)
    visible = valid[:, :keys] & ~is_future
    return KeysAndQueries(query_positions, key_positions, visible[:, None, None, :])


def check_plan(plan: Tensor, position_ids: Tensor, keys: int) -> None:
    """Refuses a plan that describes another number of keys than the cache returned.

    Args:
        plan: (batch, 1, rows, keys + queries), from `make_plan`.
        position_ids: (batch, queries).
        keys: how many the cache returned.

    Raises:
        ValueError: it does.
    """
    planned = plan.shape[-1] - position_ids.shape[-1]
    if planned != keys:
        raise ValueError(
            f"the mask was made for {planned} keys and the cache returned {keys}, so that the "
            "keys' positions are unknown; use one of transformers' dynamic, static or "
            "sliding-window caches"
        )


def _refuse_restarts(
    position_ids: Int[Tensor, "_batch query"], valid: Int[Tensor, "batch query"] | None
) -> None:
    """Which keys a query sees is decided by position here, so positions have to grow."""
    if position_ids.shape[-1] == 1 or torch.compiler.is_compiling():
        return
    falls = position_ids.diff(dim=-1) <= 0
    if valid is not None:
        falls = falls & valid[:, 1:].bool() & valid[:, :-1].bool()
    if falls.any():
        raise ValueError(
            "position_ids: expected positions that grow along a row, got some that restart or "
            "repeat; for packed sequences pass position_ids, no attention_mask and use_cache=False"
        )


def plan_window(plan: Int[Tensor, "_batch 1 rows columns"]) -> int | None:
    """The sliding window that a plan was made with. Reads a value back to the host."""
    return int(plan[0, 0, WINDOW, 0].item()) or None


def is_plan(mask: object) -> bool:
    """Whether a 4-D "mask" is a plan."""
    return isinstance(mask, Tensor) and mask.dtype == torch.int64 and mask.ndim == 4
