"""The public function: positions, branches and dispatch of rotary attention."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ropewalk.kernels.autocast import cast_inputs
from ropewalk.kernels.rotary_attention import plain, positions, validation
from ropewalk.kernels.rotary_attention.backend import Backend, check_backend
from ropewalk.kernels.rotary_attention.kinds import require_tensor
from ropewalk.kernels.rotary_attention.norms import Norms
from ropewalk.kernels.rotary_attention.op import rotary_attention_op
from ropewalk.kernels.rotary_attention.protocols import (
    Branch,
    DistanceRule,
    QueryScale,
    Rotary,
    map_numbers,
)


@dataclass(frozen=True)
class _Plain:
    """The distance rule that sees the distance itself."""

    branches: tuple[Branch, ...] = (Branch(),)
    edges: tuple[int, ...] = ()
    unit: int = 1


_PLAIN = _Plain()


def rotary_attention(
    query: Float[Tensor, "batch heads query head_dim"],
    key: Float[Tensor, "batch kv_heads key head_dim"],
    value: Float[Tensor, "batch kv_heads key value_dim"],
    *,
    rotary: Rotary | None,
    distance: DistanceRule | None = None,
    query_positions: Shaped[Tensor, "*batch query"] | None = None,
    key_positions: Shaped[Tensor, "*batch key"] | None = None,
    causal: bool = True,
    scale: float | None = None,
    log_n: QueryScale | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    query_norm_weight: Float[Tensor, " head_dim"] | None = None,
    key_norm_weight: Float[Tensor, " head_dim"] | None = None,
    norm_eps: float = 1e-6,
    sinks: Float[Tensor, " heads"] | None = None,
    key_lengths: Int[Tensor, " batch"] | None = None,
    cu_seqlens_query: Int[Tensor, " sequences_and_one"] | None = None,
    cu_seqlens_key: Int[Tensor, " sequences_and_one"] | None = None,
    attention_mask: Shaped[Tensor, "_batch _heads _query key"] | None = None,
    length: int | Tensor | None = None,
    deterministic: bool | None = None,
    return_logsumexp: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of unrotated queries to unrotated keys under a rotary and a distance rule.

    The score of a pair is ⟨R^{q_b(i)} q_i, R^{k_b(j)} k_j⟩ · scale with the branch b that the rule
    gives to the pair (see `protocols`), then softcap, then the mask. Memory is linear in the
    lengths; a pair costs one dot product, whatever the number of branches, except near an edge.
    Angles are float32 products of position and frequency, as in every model (float64 for float64
    queries): their rounding grows with the position, to about 1e-4 of a score at 10 000 and 1e-3 at
    100 000.

    Args:
        query: unrotated; float32, bfloat16, float16 or float64 (then all is float64). Under
            `torch.autocast` query, key and value are first cast to its dtype.
        key: unrotated, `heads` a multiple of `kv_heads`.
        value: of the key's length; `value_dim` may differ from `head_dim`.
        rotary: frequencies and layout, such as `ropewalk.blocks.rotary.RotaryEmbedding(head_dim)`.
            None: tensors are already positioned (`AxialRotary`), or have none; plain rule only.
        distance: which relative position a score sees, such as `ropewalk.blocks.rotary.ReRoPE`; the
            distance itself by default.
        query_positions: integer, float32 or float64, finite, (query,) or (1 | batch, query). They
            have no gradient. By default the last query sits at the last key, so that decoding needs
            no positions; with `key_lengths`, at each row's last valid key; in packed sequences, at
            its own last key. More queries than keys: the first ones come before all keys.
        key_positions: as `query_positions`; 0 … key − 1 by default, anew in packed sequences.
            Positions that restart do not separate sequences, `cu_seqlens_query` does.
        causal: hide keys at positions after the query's; True for rules of several branches.
        scale: factor on the scores; 1/√head_dim by default.
        log_n: factor on each query by its position, such as `ropewalk.blocks.rotary.LogN(512)`.
        sliding_window: hide keys at this distance and beyond.
        softcap: c, bounds scores by c·tanh(s/c).
        query_norm_weight: of an RMSNorm over each head's queries before all else; None for none.
        key_norm_weight: of one over each head's keys.
        norm_eps: added to the norms' mean squares.
        sinks: a logit per head that takes probability and has no value.
        key_lengths: (batch,), keys from this index on are hidden, as in a cache that is not full.
            What lies there is never read, so that it may be uninitialised. Lengths above the number
            of keys mean all of them, lengths below 0 none. The last query then sits at the last
            valid key, which is what decoding wants. A batch padded on the *right* needs no lengths
            where it is prefilled: a causal query sees no later key.
        cu_seqlens_query: packed sequences: batch is 1, and sequence s has the queries
            cu_seqlens_query[s] … cu_seqlens_query[s + 1] − 1. int32 or int64, from 0, never
            falling, to the number of queries. Explicit positions are then taken as given.
        cu_seqlens_key: the same of the keys; by default `cu_seqlens_query`.
        attention_mask: boolean (True is visible) or additive. Values at the least number of the
            mask's dtype hide a key as −∞ does: many libraries write them for that; a mask of ones
            and zeros must be boolean, or it hides nothing. Left padding: a
            mask (batch, 1, 1, key) of the keys that are none, and positions that count from the
            first real token. A mask costs speed; positions, lengths and packing say most things.
        length: context length for frequency rules that depend on it; by default one more than the
            greatest key position.
        deterministic: whether gradients are the same at every run. By default as
            `torch.are_deterministic_algorithms_enabled()` says. On a CPU they always are.
        return_logsumexp: also return the softmax's normaliser.
        backend: who computes. "reference" is the equation in torch. "flash" is attention that
            exists, near and far merged: torch's fused attention on a CPU, flash-attn or torch's
            flash attention on a GPU. It wants positions that count up by one, values as wide as
            keys, a positive scale, no mask, a `sliding_window` only with causal=True and token
            distances, and on a CPU no softcap. "triton" is one kernel for all branches, on a GPU or
            in Triton's interpreter. "auto" takes the fastest that can: on a GPU triton, flash,
            reference in this order, on a CPU flash or else reference. The plain rule, asked for
            nothing that `F.scaled_dot_product_attention` does not give, is that function of
            rotated tensors under "auto", on every device.

    Gradients flow to query, key, value, sinks and norms, and to a learned `log_n`. They have no
    gradient of their own (no double backward), and `torch.func.grad` does not reach them.

    Returns:
        Output (batch, heads, query, value_dim) in the query's dtype; with `return_logsumexp` also
        the logsumexp (batch, heads, query), float32 or float64, sink included. A row that sees no
        key gives zeros, and −∞ unless there is a sink.

    Raises:
        ValueError: sizes, devices, windows or options that do not fit, or an impossible backend.
            The numbers in `cu_seqlens_*` are not checked while a CUDA graph is captured.
        TypeError: a dtype or an object of the wrong kind.

    Example:
        >>> query, key, value = torch.randn(1, 8, 100, 64), *torch.randn(2, 1, 2, 100, 64)
        >>> rotary, rule = RotaryEmbedding(64), ReRoPE(window=32)
        >>> output = rotary_attention(query, key, value, rotary=rotary, distance=rule)
        >>> last = rotary_attention(query[:, :, -1:], key, value, rotary=rotary, distance=rule)
        >>> torch.allclose(last, output[:, :, -1:], atol=1e-5)  # decoding: a query, all keys so far
        True
    """
    distance = _PLAIN if distance is None else distance
    query, key, value = cast_inputs(query, key, value)
    validation.check_tensors(query, key, value)
    validation.check_options(
        scale, sliding_window, softcap,
        causal=causal, deterministic=deterministic, return_logsumexp=return_logsumexp,
    )  # fmt: skip
    validation.check_rule(distance, causal=causal)
    validation.check_rotary(rotary, query.shape[-1], len(distance.branches))
    validation.check_log_n(log_n)
    norms = Norms(query_norm_weight, key_norm_weight, norm_eps)
    norms.check(query, key)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    validation.check_sinks(sinks, query)
    validation.check_key_lengths(key_lengths, query)
    validation.check_mask(attention_mask, query, key.shape[-2])
    validation.check_packed(
        cu_seqlens_query, cu_seqlens_key, query,
        key_lengths=key_lengths, attention_mask=attention_mask,
    )  # fmt: skip
    check_backend(backend)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()

    keys = key.shape[-2]
    by_index = query_positions is None and key_positions is None
    packed = None
    if cu_seqlens_query is not None:
        starts = _narrow(cu_seqlens_query)
        packed = (starts, starts if cu_seqlens_key is None else _narrow(cu_seqlens_key))
    cu_query, cu_key = (None, None) if packed is None else packed
    query_at = key_at = None
    if not by_index:
        key_at = positions.key_positions(key_positions, query, keys, cu_key)
    if not by_index or log_n is not None:
        query_at = positions.query_positions(
            query_positions, query, keys, key_at, key_lengths, packed
        )
    if length is None:
        given = None if key_positions is None else key_at
        length = positions.context_length(given, keys, cu_key)
    frequencies, factor = _frequencies(rotary, length, query)
    query_factor = None
    if log_n is not None and query_at is not None:
        query_factor = _query_factor(log_n, query_at, query)
    extras = (sliding_window, softcap, sinks, key_lengths, attention_mask, cu_query)
    is_plain = (
        backend == "auto"
        and len(distance.branches) == 1
        and all(extra is None for extra in extras)
        and not return_logsumexp
        and scale > 0
        and plain.suits(query, key, value, causal=causal, by_index=by_index)
        # Torch's attention accumulates gradients in any order on a GPU, unless torch forbids it.
        and (query.device.type == "cpu" or not deterministic)
    )
    # A factor on queries comes after their norm.
    if not is_plain or rotary is None or query_factor is not None:
        query, key = norms.applied(query, key)
        norms = Norms()
    if query_factor is not None and query_factor.requires_grad:
        # A learned scale: the operator has no gradient for it, a product outside has.
        query = (query * query_factor[:, None, :, None]).to(query.dtype)
        query_factor = None
    if is_plain:
        if query_factor is not None:
            query = (query * query_factor[:, None, :, None]).to(query.dtype)
        if rotary is not None:
            if query_at is None or key_at is None:
                key_at = positions.key_positions(None, query, keys, None)
                query_at = positions.query_positions(None, query, keys, None, None, None)
            (branch,) = distance.branches
            wide = torch.promote_types(query.dtype, torch.float32)
            query, key = plain.rotated(
                query, key, branch.query(query_at, wide), branch.key(key_at, wide), frequencies,
                factor, rotary.layout, norms,
            )  # fmt: skip
        return plain.attend(query, key, value, causal=causal, scale=scale)
    output, logsumexp = rotary_attention_op(
        query,
        key,
        value,
        frequencies,
        factor if isinstance(factor, Tensor) else None,
        # The default positions are said by giving none.
        None if by_index else query_at,
        None if by_index else key_at,
        query_factor,
        sinks,
        key_lengths,
        attention_mask,
        cu_query,
        cu_key,
        map_numbers(distance.branches),
        list(distance.edges),
        distance.unit,
        "half" if rotary is None else rotary.layout,
        causal,
        1.0 if isinstance(factor, Tensor) else factor,
        scale,
        sliding_window,
        softcap,
        backend,
        deterministic,
    )
    return (output, logsumexp) if return_logsumexp else output


def _narrow(cu_seqlens: Tensor) -> Tensor:
    """As int32; numbers that do not fit stay too large, so that they are refused."""
    if cu_seqlens.dtype == torch.int32:  # the same tensor, whose numbers may have been read before
        return cu_seqlens
    return cu_seqlens.clamp(-(2**31), 2**31 - 1).int()


def _frequencies(
    rotary: Rotary | None, length: int | Tensor, query: Tensor
) -> tuple[Tensor, Tensor | float]:
    """Inverse frequencies (rotary_dim / 2) and the attention factor, a number or scalar tensor."""
    if rotary is None:
        return query.new_empty(0, dtype=torch.float32), 1.0
    frequencies = rotary.inverse_frequencies(length).to(query.device)
    validation.check_frequencies(frequencies, rotary.rotary_dim)
    factor = rotary.attention_factor(length)
    validation.check_attention_factor(factor)
    if not isinstance(factor, Tensor):
        return frequencies, float(factor)
    return frequencies, factor.to(query.device).reshape(())


def _query_factor(log_n: QueryScale, positions: Tensor, query: Tensor) -> Tensor:
    """(1 | batch, query), float32, or float64 for a float64 query."""
    factor = log_n(positions.double() if query.dtype == torch.float64 else positions)
    require_tensor("what log_n returns", factor)
    if factor.shape != positions.shape:
        raise ValueError(
            f"log_n must return one factor per position, shape {tuple(positions.shape)}, "
            f"got {tuple(factor.shape)}"
        )
    return factor
