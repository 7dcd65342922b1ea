"""Torch's fused attention for CPUs as a library: causal squares, rectangles and masked blocks.

The kernel is the one behind `F.scaled_dot_product_attention` on CPUs. It aligns causal queries and
keys at their beginnings, knows no window, and takes any batch and head strides, so that the blocks
of a tensor go in as its heads without a copy, and grouped queries share their keys. It must not be
called with an empty tensor, and reads the last dimension as contiguous.

Where the processor multiplies bfloat16 by tiles (AMX), bfloat16 goes in as it is: queries and keys
are rotated in float32 and rounded once, as before any fused attention, and parts are merged in
float32. Elsewhere, and for float16, which no processor has such products of, float32 is as fast or
faster, and more exact.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.flash.library import Shape, Share
from ropewalk.kernels.rotary_attention.flash.tiles import Tile, tiles
from ropewalk.kernels.rotary_attention.problem import Problem

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def unsupported(problem: Problem) -> str | None:
    """See `library.Library`."""
    return None if problem.softcap is None else "torch's fused attention knows no softcap"


def dtype(query: Tensor) -> torch.dtype:
    """Bfloat16 for bfloat16 where that is fast; else float32, or float64 for float64."""
    if query.dtype == torch.bfloat16 and _multiplies_bfloat16():
        return torch.bfloat16
    return torch.promote_types(query.dtype, torch.float32)


@cache
def _multiplies_bfloat16() -> bool:
    return torch.cpu._is_amx_tile_supported()


def attend(query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Iterator[Share]:
    """Attention tile by tile; see `library.Library`."""
    for tile in _tiles(query, key, shape, backward=False):
        mask = _mask(tile, query)
        for groups in _calls(tile, query):
            rows = _queries(query, tile, groups)
            output, logsumexp = _forward(
                rows, _keys(key, tile, rows), _keys(value, tile, rows), is_causal=tile.causal,
                attn_mask=mask, scale=shape.scale,
            )  # fmt: skip
            # Merged in float32, and rounded only then.
            results = output.to(logsumexp.dtype), logsumexp
            yield Share(groups, tile.queries, *(_back(x, tile, groups) for x in results))


def backward(
    tensors: tuple[Tensor, ...],
    results: tuple[Tensor, ...],
    gradients: tuple[Tensor, ...],
    shape: Shape,
) -> None:
    """Gradients tile by tile; see `library.Library`."""
    query, key, value = tensors
    of_query, of_key, of_value = gradients
    for tile in _tiles(query, key, shape, backward=True):
        mask = _mask(tile, query)
        for groups in _calls(tile, query):
            rows, *result = (_queries(x, tile, groups) for x in (query, *results))
            output, logsumexp, of_output = result
            parts = _backward(
                of_output, rows, _keys(key, tile, rows), _keys(value, tile, rows), output,
                logsumexp, 0.0, tile.causal or tile.reversed,
                attn_mask=mask, scale=shape.scale,
            )  # fmt: skip
            _add_queries(of_query, parts[0], tile, groups)
            _add_keys(of_key, parts[1], tile)
            _add_keys(of_value, parts[2], tile)


def _tiles(query: Tensor, key: Tensor, shape: Shape, *, backward: bool) -> Iterator[Tile]:
    queries, keys = query.shape[2], key.shape[1]
    return tiles(queries, keys, causal=shape.causal, window=shape.window, backward=backward)


def _blocked(tile: Tile) -> bool:
    """Whether the kernel's heads are blocks, so that each group takes a call of its own."""
    return tile.blocks > 1 or tile.reversed


def _calls(tile: Tile, query: Tensor) -> Iterator[slice]:
    """The groups of each call."""
    groups = query.shape[1]
    step = 1 if _blocked(tile) else groups
    return (slice(group, group + step) for group in range(0, groups, step))


def _queries(x: Tensor, tile: Tile, groups: slice) -> Tensor:
    """The kernel's (batch, heads, query, …): heads are blocks, or groups, or there is but one."""
    x = x[:, groups, tile.queries]
    if _blocked(tile):
        x = x[:, 0].unflatten(1, (tile.blocks, tile.block))
        return x.flip(2)[:, :, 1:] if tile.reversed else x
    # Without causality groups are rows of one product, and keys are read once for all of them.
    return x if tile.causal else x.flatten(1, 2).unsqueeze(1)


def _keys(x: Tensor, tile: Tile, rows: Tensor) -> Tensor:
    """The kernel's keys or values for queries as `_queries` gives them."""
    x = x[:, tile.keys].unfold(1, tile.span, tile.block).mT
    if tile.reversed:
        return x.flip(2)[:, :, :-1]
    return x if _blocked(tile) else x.expand(-1, rows.shape[1], -1, -1)


def _mask(tile: Tile, query: Tensor) -> Tensor | None:
    """Additive, broadcastable to the kernel's (batch, heads, query, key)."""
    if tile.band is None:
        return None
    low, high = tile.band
    ahead = torch.arange(tile.span) - torch.arange(tile.block)[:, None]
    mask = torch.full(ahead.shape, -torch.inf, dtype=query.dtype)
    mask.masked_fill_((ahead >= low) & (ahead < high), 0.0)
    return mask.repeat(1 if _blocked(tile) else query.shape[1], 1)[None, None]


def _back(x: Tensor, tile: Tile, groups: slice) -> Tensor:
    """A result of the kernel as (rows, groups, query, …); the inverse of `_queries`."""
    if _blocked(tile):
        return x.flatten(1, 2).unsqueeze(1)
    return x if tile.causal else x.unflatten(2, (groups.stop - groups.start, -1)).squeeze(1)


def _add_queries(gradient: Tensor, part: Tensor, tile: Tile, groups: slice) -> None:
    target = gradient[:, groups, tile.queries]
    if tile.reversed:
        target = target[:, 0].unflatten(1, (tile.blocks, tile.block))[:, :, :-1]
        target += part.flip(2)
    else:
        target += _back(part, tile, groups)


def _add_keys(gradient: Tensor, part: Tensor, tile: Tile) -> None:
    block, length = tile.block, tile.blocks * tile.block
    if tile.reversed:
        target = gradient[:, tile.keys].unflatten(1, (tile.blocks, block))[:, :, 1:]
        target += part.flip(2)
    elif _blocked(tile):
        # Blocks share keys: at most one block length at a time, so that no sum meets itself.
        for first in range(0, tile.span, block):
            own = part[:, :, first : first + block]
            start, width = tile.keys.start + first, own.shape[2]
            target = gradient[:, start : start + length - block + width]
            target.unfold(1, width, block).mT.add_(own)
    else:
        target = gradient[:, tile.keys]
        target += part.sum(1, dtype=target.dtype) if part.shape[1] > 1 else part[:, 0]
