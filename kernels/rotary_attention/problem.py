"""What the op is asked: its tensors and constants, and the rotation R^p by which positions enter.

    R^p x:  (x_a, x_b) → (x_a cos φ − x_b sin φ, x_b cos φ + x_a sin φ) · factor,  φ = p · θ

for every pair (a, b) of a head's rotated dimensions (RoFormer, arXiv 2104.09864).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropewalk.kernels.rotary import rotate
from ropewalk.kernels.rotary_attention.protocols import Layout
from ropewalk.kernels.rotary_attention.schedule import Visibility


@dataclass(frozen=True)
class Problem:
    """The op's tensors and constants after validation, in their widest meaning.

    Attributes:
        query: (batch, heads, query, head_dim), unrotated.
        key: (batch, kv_heads, key, head_dim), unrotated.
        value: (batch, kv_heads, key, value_dim).
        inverse_frequencies: (rotary_dim / 2); empty if nothing is rotated.
        attention_factor: scalar tensor on cos and sin.
        query_angles: positions of queries, (branches, 1 | batch, query).
        key_angles: positions of keys, (branches, 1 | batch, key).
        query_factor: factor on each query, (1 | batch, query).
        sinks: one logit per head without a value, (heads,).
        layout: which dimensions pair up.
        scale: factor on the scores.
        softcap: bound on the scores.
        key_copies: of each branch, which of the keys' rotated copies it takes; −1 for the keys as
            they are. Branches that place keys alike share a copy.
        visibility: what is seen, and through which branch.
        deterministic: whether gradients may not depend on the order in which a device works.
        by_index: whether positions are the default ones: key j at j and the last query at the last
            valid key, anew in each sequence of a packed batch.
        cu_seqlens_query: int32 (sequences + 1,), where each packed sequence's queries begin.
        cu_seqlens_key: the same of the keys; None exactly if `cu_seqlens_query` is.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    inverse_frequencies: Tensor
    attention_factor: Tensor
    query_angles: Tensor
    key_angles: Tensor
    query_factor: Tensor | None
    sinks: Tensor | None
    layout: Layout
    scale: float
    softcap: float | None
    key_copies: tuple[int, ...]
    visibility: Visibility
    deterministic: bool
    by_index: bool
    cu_seqlens_query: Tensor | None
    cu_seqlens_key: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def turn(self, x: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
        """R^positions x, or its transpose; positions (1 | batch, sequence)."""
        # Position 0 turns nothing; ReRoPE's far keys are all there, so that they are never copied.
        if self.inverse_frequencies.numel() == 0 or not (
            positions.any() or bool(self.attention_factor != 1)
        ):
            return x
        angle = positions.to(self.dtype)[:, None, :, None] * self.inverse_frequencies.to(self.dtype)
        factor = self.attention_factor.to(self.dtype)
        cos, sin = angle.cos() * factor, angle.sin() * factor
        return rotate(x, cos, -sin if back else sin, layout=self.layout)
