"""flash-attn, where it is installed: one call for plain, near and far merged by logsumexp.

    near   a sliding window on (q₁, k₁)
    far    causal attention of q₂[w:] on k₂[:L − w]

Its function gives the logsumexp without a gradient, so that the merged form is measured forward
only; the library's own `flash` backend has a backward of its own.
"""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.case import Unavailable
from benchmarks.peers.merge import merge
from benchmarks.peers.rope import apply_rope, tables
from ropewalk.kernels.rotary_attention import DistanceRule

if TYPE_CHECKING:
    from benchmarks.attention import AttentionWorkload, Forward


def build(name: str, workload: "AttentionWorkload", rule: DistanceRule) -> "Forward":
    s, branches = workload.shape, len(rule.branches)
    if importlib.util.find_spec("flash_attn") is None:
        raise Unavailable("flash-attn is not installed")
    if s.device != "cuda":
        raise Unavailable("flash-attn needs a GPU")
    if branches > 2 or rule.unit != 1:
        raise Unavailable("a window by blocks is no window of flash-attn")
    if branches == 2 and s.backward:
        raise Unavailable("flash-attn's logsumexp has no gradient to merge by")
    try:
        from flash_attn import flash_attn_func  # type: ignore[import-not-found]
    except (ImportError, OSError) as error:
        raise Unavailable(f"flash-attn cannot be imported: {error}") from None
    return forward_of(flash_attn_func, workload, rule)


def forward_of(
    flash_attn_func: Callable[..., Any], workload: "AttentionWorkload", rule: DistanceRule
) -> "Forward":
    """The function, given flash-attn's."""
    s = workload.shape
    branch_tables = [tables(workload, branch) for branch in rule.branches]

    def turned(x: Tensor, branch: int, side: int) -> Tensor:
        return apply_rope(x, branch_tables[branch][side]).transpose(1, 2)

    def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = flash_attn_func(
            turned(query, 0, 0), turned(key, 0, 1), value.transpose(1, 2), causal=True
        )
        return output.transpose(1, 2)

    def merged(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        (window,) = rule.edges
        values = value.transpose(1, 2)
        near, near_lse, *_ = flash_attn_func(
            turned(query, 0, 0),
            turned(key, 0, 1),
            values,
            causal=True,
            window_size=(window - 1, 0),
            return_attn_probs=True,
        )
        # Queries that have a key at the window's distance, and those keys.
        first = max(0, window - (s.keys - s.queries))
        last = s.keys - window
        if last <= 0:
            return near.transpose(1, 2)
        far, far_lse, *_ = flash_attn_func(
            turned(query, 1, 0)[:, first:],
            turned(key, 1, 1)[:, :last],
            values[:, :last],
            causal=True,
            return_attn_probs=True,
        )
        near = near.transpose(1, 2)
        late = merge([near[:, :, first:], far.transpose(1, 2)], [near_lse[:, :, first:], far_lse])
        return torch.cat((near[:, :, :first], late), 2)

    return plain if len(rule.branches) == 1 else merged
