"""Multi-head attention whose positions are a rotary embedding times a distance rule.

    q, k, v = x W_q, x W_k, x W_v          (q, k normed per head if `qk_norm`)
    y = rotary_attention(q, k, v) W_o      (`ropewalk.kernels.rotary_attention`)

Grouped-query heads (arXiv 2305.13245), query-key normalisation before the rotation as in Qwen3
(arXiv 2302.05442 §2 for why), sliding windows, logit caps and log n scaling compose with every
distance rule. Keys are cached unrotated. Time O(seq²·dim), memory O(seq·dim).
"""

from typing import TypeGuard

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ropewalk.blocks.key_value_cache import KeyValueCache
from ropewalk.blocks.rotary import Plain
from ropewalk.kernels.rotary_attention import (
    Backend,
    DistanceRule,
    QueryScale,
    Rotary,
    check_backend,
    rotary_attention,
    validation,
)
from ropewalk.kernels.rotary_attention.kinds import kind
from ropewalk.kernels.rotary_attention.norms import Norms

__all__ = ["KeyValueCache", "RotaryAttention"]


class RotaryAttention(nn.Module):
    """Attention over (batch, seq, dim) with relative positions, for anybody's model.

    Example:
        >>> rotary = RotaryEmbedding(64)                       # one for all layers
        >>> layer = RotaryAttention(512, 8, 2, rotary=rotary, distance=ReRoPE(window=256))
        >>> layer(torch.randn(1, 1000, 512)).shape
        torch.Size([1, 1000, 512])

    Args:
        dim: width of the residual stream.
        heads: query heads.
        kv_heads: key and value heads, a divisor of `heads`; `heads` if None.
        rotary: the rotary embedding; layers may share it. None for no positions at all.
        distance: the distance rule; plain RoPE by default. Assign to `.distance` to change it,
            for instance from inverse Leaky ReRoPE in training to plain RoPE afterwards.
        log_n: factor on queries by position.
        qk_norm: RMSNorm with learned weights over each head's query and key, before the rotation.
        norm_eps: the norms' epsilon.
        head_dim: width of a head; dim / heads if None.
        bias: whether the projections of queries, keys and values have a bias.
        causal: whether keys at later positions are hidden.
        sliding_window: keys at this distance and beyond are hidden.
        softcap: bound on the logits.
        backend: as in `rotary_attention`.

    Raises:
        ValueError: sizes that do not divide, or a rotary wider than a head.
        TypeError: a rotary, a distance rule or a log n of the wrong kind, such as a class.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        rotary: Rotary | None,
        distance: DistanceRule | None = None,
        log_n: QueryScale | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        head_dim: int | None = None,
        bias: bool = False,
        causal: bool = True,
        sliding_window: int | None = None,
        softcap: float | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if min(dim, heads, kv_heads) < 1 or heads % kv_heads:
            raise ValueError(
                f"heads must be a positive multiple of kv_heads, got dim {dim}, heads {heads} and "
                f"kv_heads {kv_heads}"
            )
        if head_dim is None and dim % heads:
            raise ValueError(
                f"dim must be a multiple of heads unless head_dim is given, got dim {dim} and "
                f"heads {heads}"
            )
        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.rotary = rotary
        self.distance: DistanceRule = Plain() if distance is None else distance
        # Each may be assigned later; calls check them again.
        validation.check_options(None, sliding_window, softcap, causal=causal)
        validation.check_rule(self.distance, causal=causal)
        validation.check_rotary(rotary, self.head_dim, len(self.distance.branches))
        validation.check_log_n(log_n)
        check_backend(backend)
        self.log_n = log_n
        self.causal, self.sliding_window, self.softcap = causal, sliding_window, softcap
        self.backend: Backend = backend
        self.query_projection = nn.Linear(dim, heads * self.head_dim, bias=bias)
        self.key_projection = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.value_projection = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.output_projection = nn.Linear(heads * self.head_dim, dim, bias=False)
        self.query_norm = nn.RMSNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.head_dim, eps=norm_eps) if qk_norm else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        *,
        positions: Shaped[Tensor, "*batch seq"] | None = None,
        attention_mask: Shaped[Tensor, "_batch _heads _query key"] | None = None,
        cu_seqlens: Int[Tensor, " sequences_and_one"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        """Attends.

        Args:
            x: the residual stream, normed by the caller.
            positions: integer or float, (seq,) or (batch, seq); 0 … seq − 1 by default, or on from
                the cache's last position. Leave them out where they are just that: attention by
                index is faster.
            attention_mask: boolean (True is visible) or additive, over all keys including cached.
            cu_seqlens: where packed sequences begin, from 0 to seq, for a batch of 1; each sees
                itself alone and begins at position 0. Not with a cache.
            cache: holds the keys of earlier calls; the new ones are appended.

        Returns:
            The update of the residual stream.

        Raises:
            ValueError: shapes that do not fit, a cache while gradients are recorded or of another
                layer, or a cache and packed sequences.
        """
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(
                f"x must have shape (batch, seq, {self.dim}), got {tuple(x.shape)}; dim is the "
                f"width that the layer was made with"
            )
        if positions is not None:
            batch, length, _ = x.shape
            validation.check_positions("positions", positions, batch, length, x.device)
        if not (cache is None or isinstance(cache, KeyValueCache)):
            raise TypeError(f"cache must be a KeyValueCache, got {kind(cache)}")
        if cache is not None and cu_seqlens is not None:
            raise ValueError(
                "a key-value cache continues every row of a batch, and packed sequences share one "
                "row; pass either cache or cu_seqlens"
            )
        if cache is not None and not torch.compiler.is_compiling():
            cache.claim(self)
        query = self._heads(self.query_projection(x))
        key = self._heads(self.key_projection(x))
        value = self._heads(self.value_projection(x))
        norms = self._norms() if cache is None else Norms()  # keys are cached as they are normed
        if norms.query_weight is None:
            query, key = self.query_norm(query), self.key_norm(key)
        key_positions, by_index = positions, True
        if cache is not None:
            queries = x.shape[1]
            rows = positions[None] if positions is not None and positions.ndim == 1 else positions
            by_index = cache.counts(rows)
            key, value, held = cache.write(key, value, rows)
            if not by_index:
                positions, key_positions = held[:, held.shape[1] - queries :], held
        y = rotary_attention(
            query,
            key,
            value,
            rotary=self.rotary,
            distance=self.distance,
            query_positions=positions,
            key_positions=key_positions,
            causal=self.causal,
            log_n=self.log_n,
            sliding_window=self.sliding_window,
            softcap=self.softcap,
            cu_seqlens_query=cu_seqlens,
            attention_mask=attention_mask,
            backend=self.backend,
            query_norm_weight=norms.query_weight,
            key_norm_weight=norms.key_weight,
            norm_eps=norms.eps,
        )
        if cache is not None:
            cache.commit(key.shape[2], by_index=by_index)
        assert isinstance(y, Tensor)  # without return_logsumexp there is one result
        return self.output_projection(y.transpose(1, 2).flatten(2))

    def _norms(self) -> Norms:
        """The norms that attention can do with its rotation; none where the modules must run.

        That is where somebody has put others in their place, or looks at what they do.
        """
        query, key = self.query_norm, self.key_norm
        if _as_made(query) and _as_made(key) and query.eps is not None and query.eps == key.eps:
            return Norms(query.weight, key.weight, query.eps)
        return Norms()

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, seq, heads · head_dim) → (batch, heads, seq, head_dim)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def extra_repr(self) -> str:
        parts = [f"{self.dim}", f"heads={self.heads}", f"distance={self.distance}"]
        if self.kv_heads != self.heads:
            parts.insert(2, f"kv_heads={self.kv_heads}")
        for name in ("log_n", "sliding_window", "softcap"):
            if getattr(self, name) is not None:
                parts.append(f"{name}={getattr(self, name)}")
        if not self.causal:
            parts.append("causal=False")
        return ", ".join(parts)


def _as_made(norm: nn.Module) -> TypeGuard[nn.RMSNorm]:
    """Whether a module is an RMSNorm over a head, and nobody's hooks are on it."""
    hooks = (norm._forward_hooks, norm._forward_pre_hooks, norm._backward_hooks)
    return type(norm) is nn.RMSNorm and not any(hooks) and not norm._backward_pre_hooks
