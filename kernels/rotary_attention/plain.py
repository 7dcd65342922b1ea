"""The plain rule that asks for nothing more: rotate, then torch's fused attention.

Such a problem needs no branches, and torch's own kernels answer it on every device.
"""

import torch
from torch import Tensor

from ropewalk.kernels.rotary import rotate_query_key
from ropewalk.kernels.rotary_attention.norms import Norms
from ropewalk.kernels.rotary_attention.protocols import Layout

# Keys up to which torch's attention answers one query sooner than an operator of ours is called.
SHORT_CACHE = 4096


def suits(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, by_index: bool) -> bool:
    """Whether `F.scaled_dot_product_attention` hides the keys that these positions hide.

    Args:
        query: (batch, heads, query, head_dim).
        key: (batch, kv_heads, key, head_dim).
        value: (batch, kv_heads, key, value_dim).
        causal: whether later keys are hidden.
        by_index: whether positions are the default ones.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if value.shape[-1] != query.shape[-1] or min(queries, keys) == 0:
        return False
    # A few queries against a long cache are left to the operator, which reads it once.
    short = queries == 1 and keys <= SHORT_CACHE and query.device.type == "cpu"
    return not causal or (by_index and (queries == keys or short))


def rotated(
    query: Tensor,
    key: Tensor,
    query_at: Tensor,
    key_at: Tensor,
    frequencies: Tensor,
    factor: Tensor | float,
    layout: Layout,
    norms: Norms,
) -> tuple[Tensor, Tensor]:
    """Query and key normed and turned to positions (1 | batch, sequence)."""
    cos, sin = _cos_sin(query_at, frequencies, factor, query)
    key_cos, key_sin = _cos_sin(key_at, frequencies, factor, key)
    return rotate_query_key(
        query, key, cos, sin, layout=layout, key_cos=key_cos, key_sin=key_sin,
        query_norm_weight=norms.query_weight, key_norm_weight=norms.key_weight, norm_eps=norms.eps,
    )  # fmt: skip


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float) -> Tensor:
    """Attention of rotated tensors."""
    # Branches, because torch wants booleans and while tracing a comparison of lengths is none.
    is_causal = enable_gqa = False
    if causal and query.shape[-2] > 1:
        is_causal = True
    if query.shape[1] != key.shape[1]:
        enable_gqa = True
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _cos_sin(
    positions: Tensor, frequencies: Tensor, factor: Tensor | float, x: Tensor
) -> tuple[Tensor, Tensor]:
    """(1 | batch, sequence, rotary_dim / 2), float32, or float64 for float64 `x`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    angle = positions.to(dtype)[:, :, None] * frequencies.to(dtype)
    factor = factor.to(dtype) if isinstance(factor, Tensor) else factor
    return angle.cos() * factor, angle.sin() * factor
