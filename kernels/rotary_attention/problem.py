"""What the op is asked: its tensors and constants, and the rotation R^p by which positions enter.

    R^p x:  (x_a, x_b) → (x_a cos φ − x_b sin φ, x_b cos φ + x_a sin φ) · factor,  φ = p · θ

for every pair (a, b) of a head's rotated dimensions (RoFormer, arXiv 2104.09864).
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ropewalk.kernels.rotary import rotate
from ropewalk.kernels.rotary_attention import positions
from ropewalk.kernels.rotary_attention.protocols import Branch, Layout, key_copies
from ropewalk.kernels.rotary_attention.schedule import Visibility


@dataclass(frozen=True)
class Problem:
    """The op's tensors and constants after validation, in their widest meaning.

    Positions that are the default ones are not given. `visibility`, `query_angles` and `key_angles`
    make them when they are first asked for, so that a kernel which computes positions from indices
    costs nobody a tensor of them.

    Attributes:
        query: (batch, heads, query, head_dim), unrotated.
        key: (batch, kv_heads, key, head_dim), unrotated.
        value: (batch, kv_heads, key, value_dim).
        inverse_frequencies: (rotary_dim / 2); empty if nothing is rotated.
        factor: on cos and sin, a number or a scalar tensor.
        query_positions: (1 | batch, query); None if positions are the default ones: key j at j and
            the last query at the last valid key, anew in each sequence of a packed batch.
        key_positions: (1 | batch, key); None exactly if `query_positions` is.
        query_factor: factor on each query, (1 | batch, query).
        sinks: one logit per head without a value, (heads,).
        key_lengths: (batch,), keys from this index on are hidden.
        attention_mask: boolean or additive, (1 | batch, 1 | heads, 1 | query, key).
        branches: where each branch places queries and keys.
        edges: thresholds between branches, in units.
        unit: block size in which distance is measured.
        layout: which dimensions pair up.
        causal: whether keys at later positions are hidden.
        sliding_window: keys at this distance and beyond are hidden.
        scale: factor on the scores.
        softcap: bound on the scores.
        deterministic: whether gradients may not depend on the order in which a device works.
        cu_seqlens_query: int32 (sequences + 1,), where each packed sequence's queries begin.
        cu_seqlens_key: the same of the keys; None exactly if `cu_seqlens_query` is.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    inverse_frequencies: Tensor
    factor: Tensor | float
    query_positions: Tensor | None
    key_positions: Tensor | None
    query_factor: Tensor | None
    sinks: Tensor | None
    key_lengths: Tensor | None
    attention_mask: Tensor | None
    branches: tuple[Branch, ...]
    edges: tuple[int, ...]
    unit: int
    layout: Layout
    causal: bool
    scale: float
    sliding_window: int | None
    softcap: float | None
    deterministic: bool
    cu_seqlens_query: Tensor | None
    cu_seqlens_key: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return torch.promote_types(self.query.dtype, torch.float32)

    @property
    def by_index(self) -> bool:
        """Whether positions are the default ones."""
        return self.query_positions is None

    @cached_property
    def key_copies(self) -> tuple[int, ...]:
        """See `protocols.key_copies`."""
        return tuple(key_copies(self.branches))

    @cached_property
    def attention_factor(self) -> Tensor:
        """The factor on cos and sin as a scalar tensor."""
        if isinstance(self.factor, Tensor):
            return self.factor
        # Made on the device: copying a number to it would wait for all that it still has to do.
        return torch.full((), self.factor, dtype=self.dtype, device=self.query.device)

    @cached_property
    def visibility(self) -> Visibility:
        """What is seen, and through which branch, with positions in either case."""
        query_at, key_at = self.query_positions, self.key_positions
        if query_at is None or key_at is None:
            cu_query, cu_key = self.cu_seqlens_query, self.cu_seqlens_key
            packed = None if cu_query is None or cu_key is None else (cu_query, cu_key)
            keys = self.key.shape[2]
            key_at = positions.key_positions(None, self.query, keys, cu_key)
            query_at = positions.query_positions(
                None, self.query, keys, None, self.key_lengths, packed
            )
        return Visibility(
            query_positions=query_at,
            key_positions=key_at,
            edges=self.edges,
            unit=self.unit,
            causal=self.causal,
            sliding_window=self.sliding_window,
            attention_mask=self.attention_mask,
        )

    @cached_property
    def query_angles(self) -> Tensor:
        """Positions of the queries in every branch, (branches, 1 | batch, query)."""
        at = self.visibility.query_positions
        return torch.stack([branch.query(at, self.dtype) for branch in self.branches])

    @cached_property
    def key_angles(self) -> Tensor:
        """Positions of the keys in every branch, (branches, 1 | batch, key)."""
        at = self.visibility.key_positions
        return torch.stack([branch.key(at, self.dtype) for branch in self.branches])

    def turn(self, x: Tensor, at: Tensor, *, back: bool = False) -> Tensor:
        """R^at x, or its transpose; `at` are positions, (1 | batch, sequence)."""
        # Position 0 turns nothing; ReRoPE's far keys are all there, so that they are never copied.
        if self.inverse_frequencies.numel() == 0 or not (
            at.any() or bool(self.attention_factor != 1)
        ):
            return x
        angle = at.to(self.dtype)[:, None, :, None] * self.inverse_frequencies.to(self.dtype)
        factor = self.attention_factor.to(self.dtype)
        cos, sin = angle.cos() * factor, angle.sin() * factor
        return rotate(x, cos, -sin if back else sin, layout=self.layout)
