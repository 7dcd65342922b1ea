"""Softmax attention as a recurrence over keys, for study and as an oracle.

One query reads keys and values one after another, and its state is a weighted sum y of the values
and the sum z of their weights,

    y ← y + e^(q·k) v        z ← z + e^(q·k)        output y / z

which is attention after every key. The exponentials overflow; so the state also holds the greatest
score m so far, and y and z are kept times e^(−m). Two states over different keys have a sum

    (m₁, y₁, z₁) ∘ (m₂, y₂, z₂) = (m, e^(m₁−m) y₁ + e^(m₂−m) y₂, e^(m₁−m) z₁ + e^(m₂−m) z₂)

with m = max(m₁, m₂), associative and commutative. Hence keys can be read in chunks
(`recurrent_attention`), all prefixes found by a scan (`prefix_attention`), and a state be resumed.

Unlike a cell of an RNN the state belongs to one query: causal attention has as many recurrences
as queries, and generation with the next query starts from the first key again. This is why a cache
of keys is needed, and what a state of a fixed size gives up.

Source: kexue.fm/archives/10017; Feng et al., arXiv 2405.13956; the rescaling from Milakov and
Gimelshein, arXiv 1805.02867.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.kernels.dtypes import statistics_dtype


class AttentionState(NamedTuple):
    """What queries have read so far; float32 (float64 of float64 queries).

    Attributes:
        maximum: m, −inf before the first key. It carries no gradient: the output does not depend
            on it.
        numerator: e^(−m) y.
        denominator: e^(−m) z.
    """

    maximum: Float[Tensor, "*queries"]
    numerator: Float[Tensor, "*queries value_dim"]
    denominator: Float[Tensor, "*queries"]

    def output(self) -> Float[Tensor, "*queries value_dim"]:
        """The attended values, y / z; zeros where nothing was read."""
        nothing = self.denominator == 0
        return self.numerator / self.denominator.masked_fill(nothing, 1).unsqueeze(-1)


def read(
    scores: Float[Tensor, "*batch query key"], values: Float[Tensor, "*batch key value_dim"]
) -> AttentionState:
    """The state of queries that have read these keys and no others.

    Args:
        scores: q·k, scaled; −inf where a query must not look.
        values: of the keys.
    """
    maximum = scores.new_full(scores.shape[:-1], -math.inf)
    if scores.shape[-1] > 0:
        maximum = scores.detach().amax(-1)
    weights = (scores - _finite(maximum).unsqueeze(-1)).exp()
    return AttentionState(maximum, weights @ values, weights.sum(-1))


def combine(first: AttentionState, second: AttentionState) -> AttentionState:
    """The state of queries that have read both sets of keys; shapes are broadcast."""
    maximum = torch.maximum(first.maximum, second.maximum)
    one, two = ((state.maximum - _finite(maximum)).exp() for state in (first, second))
    return AttentionState(
        maximum,
        one.unsqueeze(-1) * first.numerator + two.unsqueeze(-1) * second.numerator,
        one * first.denominator + two * second.denominator,
    )


def recurrent_attention(
    queries: Float[Tensor, "*batch query head_dim"],
    keys: Float[Tensor, "*batch key head_dim"],
    values: Float[Tensor, "*batch key value_dim"],
    *,
    causal: bool = False,
    scale: float | None = None,
    state: AttentionState | None = None,
    keys_before: int = 0,
    chunk_size: int = 1,
) -> tuple[Float[Tensor, "*batch query value_dim"], AttentionState]:
    """Attention by reading keys one after another.

    Args:
        queries: in any floating-point dtype.
        keys: as many heads as queries.
        values: of the keys.
        causal: query i reads keys up to position i.
        scale: of the scores; 1/√head_dim if None.
        state: of these queries after other keys, which is continued.
        keys_before: how many keys `state` has read, which is the position of the first of `keys`
            under `causal`.
        chunk_size: keys that are read at a time: 1 is the recurrence, more is its parallel form,
            with the same result.

    Returns:
        The attended values in the dtype of the queries, zeros of a query that has read nothing,
        and the state, to be continued with further keys.

    Raises:
        ValueError: shapes that do not fit, a chunk below 1, a negative `keys_before`.

    Example:
        >>> q, k, v = torch.randn(3, 2, 5, 8)
        >>> outputs, _ = recurrent_attention(q, k, v, causal=True)
        >>> exact = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        >>> torch.allclose(outputs, exact, atol=1e-6)
        True
    """
    _check(queries, keys, values)
    if chunk_size < 1 or keys_before < 0:
        raise ValueError(
            f"expected chunk_size ≥ 1 and keys_before ≥ 0, got {chunk_size} and {keys_before}"
        )
    scaled = _scaled(queries, scale)
    before = _nothing(scaled, values) if state is None else state
    _check_state(before, queries, values)
    positions = torch.arange(queries.shape[-2], device=queries.device).unsqueeze(-1)
    for start in range(0, keys.shape[-2], chunk_size):
        chunk = keys[..., start : start + chunk_size, :].to(scaled.dtype)
        scores = scaled @ chunk.mT
        if causal:
            first = keys_before + start
            behind = torch.arange(first, first + chunk.shape[-2], device=keys.device)
            scores = scores.masked_fill(behind > positions, -math.inf)
        read_now = read(scores, values[..., start : start + chunk_size, :].to(scaled.dtype))
        before = combine(before, read_now)
    return before.output().to(queries.dtype), before


def prefix_attention(
    query: Float[Tensor, "*batch head_dim"],
    keys: Float[Tensor, "*batch time head_dim"],
    values: Float[Tensor, "*batch time value_dim"],
    *,
    scale: float | None = None,
    state: AttentionState | None = None,
) -> tuple[Float[Tensor, "*batch time value_dim"], AttentionState]:
    """What one query has read after each key: every state of the recurrence by a parallel scan.

    In log₂(time) rounds each state is combined with the one twice as far back as in the round
    before.

    Args:
        query: one for each sequence, in any floating-point dtype.
        keys: of the sequence.
        values: of the keys.
        scale: of the scores; 1/√head_dim if None.
        state: of this query after earlier keys, which is continued.

    Returns:
        The output after each key in the dtype of the query, and the state after the last.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check(query.unsqueeze(-2), keys, values)
    scaled = _scaled(query, scale)
    before = _nothing(scaled, values) if state is None else state
    _check_state(before, query, values)
    scores = (keys.to(scaled.dtype) @ scaled.unsqueeze(-1)).squeeze(-1)
    alone = (scores - scores.detach()).exp()  # ones, with the gradient of e^(score − maximum)
    states = AttentionState(scores.detach(), alone.unsqueeze(-1) * values.to(scaled.dtype), alone)
    length, distance = scores.shape[-1], 1
    while distance < length:
        states = combine(_delayed(states, distance), states)
        distance *= 2
    time = query.ndim - 1
    states = combine(AttentionState(*(x.unsqueeze(time) for x in before)), states)
    last = before if length == 0 else AttentionState(*(x.select(time, -1) for x in states))
    return states.output().to(query.dtype), last


def _finite(maximum: Tensor) -> Tensor:
    """A maximum that can be subtracted where no key was read: −inf less −inf is not a number."""
    return maximum.masked_fill(maximum == -math.inf, 0)


def _delayed(states: AttentionState, steps: int) -> AttentionState:
    """The state some steps ago; before the first that of no key."""
    return AttentionState(
        functional.pad(states.maximum[..., :-steps], (steps, 0), value=-math.inf),
        functional.pad(states.numerator[..., :-steps, :], (0, 0, steps, 0)),
        functional.pad(states.denominator[..., :-steps], (steps, 0)),
    )


def _nothing(queries: Tensor, values: Tensor) -> AttentionState:
    shape = queries.shape[:-1]
    return AttentionState(
        queries.new_full(shape, -math.inf),
        queries.new_zeros(*shape, values.shape[-1]),
        queries.new_zeros(shape),
    )


def _scaled(queries: Tensor, scale: float | None) -> Tensor:
    factor = 1 / math.sqrt(queries.shape[-1]) if scale is None else scale
    return queries.to(statistics_dtype(queries.dtype)) * factor


def _check(queries: Tensor, keys: Tensor, values: Tensor) -> None:
    fits = (
        min(queries.ndim, keys.ndim, values.ndim) >= 2
        and queries.shape[:-2] == keys.shape[:-2] == values.shape[:-2]
        and queries.shape[-1] == keys.shape[-1]
        and keys.shape[-2] == values.shape[-2]
    )
    if not fits:
        raise ValueError(
            "expected queries (*batch, query, head_dim), keys (*batch, key, head_dim) and values "
            f"(*batch, key, value_dim), got {tuple(queries.shape)}, {tuple(keys.shape)} and "
            f"{tuple(values.shape)}"
        )


def _check_state(state: AttentionState, queries: Tensor, values: Tensor) -> None:
    shape = queries.shape[:-1]
    expected = [tuple(shape), (*shape, values.shape[-1]), tuple(shape)]
    got = [tuple(x.shape) for x in state]
    if got != expected:
        raise ValueError(
            f"state: expected maximum, numerator and denominator of {expected}, a state of these "
            f"queries, got {got}"
        )
