"""An independent twin of rotary attention: every pair rotated on its own, in float64.

Relative positions come from the rules' definitions as functions of one query and one key position,
the rotation is a product of complex numbers by e^{i·θ·distance}, and the softmax runs over a dense
matrix. What it shares with the library is the rotary embedding: its inverse frequencies, its
attention factor, its layout and its width, which have tests of their own in tests/blocks/rotary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.rotary import (
    DualChunk,
    LeakyReRoPE,
    Plain,
    ReRoPE,
    RotaryEmbedding,
    SelfExtend,
)


def plain(i: Tensor, j: Tensor) -> Tensor:
    return i - j


def rerope(window: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda i, j: (i - j).clamp(max=window)


def leaky(window: int, factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    def distance(i: Tensor, j: Tensor) -> Tensor:
        return torch.where(i - j < window, i - j, window + (i - j - window) / factor)

    return distance


def self_extend(group: int, window: int) -> Callable[[Tensor, Tensor], Tensor]:
    def distance(i: Tensor, j: Tensor) -> Tensor:
        grouped = (i / group).floor() - (j / group).floor() + window - window // group
        return torch.where(i - j < window, i - j, grouped)

    return distance


def dual_chunk(chunk: int, local: int) -> Callable[[Tensor, Tensor], Tensor]:
    stride = chunk - local

    def distance(i: Tensor, j: Tensor) -> Tensor:
        within_i, within_j = i - (i / stride).floor() * stride, j - (j / stride).floor() * stride
        apart = (i / stride).floor() - (j / stride).floor()
        successive = (within_i + stride).clamp(max=chunk) - within_j
        return torch.where(
            apart < 1, within_i - within_j, torch.where(apart < 2, successive, chunk - within_j)
        )

    return distance


RULES = {
    "plain": (Plain(), plain),
    "rerope": (ReRoPE(window=5), rerope(5)),
    "rerope-1": (ReRoPE(window=1), rerope(1)),
    "leaky": (LeakyReRoPE(window=4, factor=8.0), leaky(4, 8.0)),
    "inverse-leaky": (LeakyReRoPE(window=3, factor=0.25), leaky(3, 0.25)),
    "self-extend": (SelfExtend(group=3, window=7), self_extend(3, 7)),
    "dual-chunk": (DualChunk(chunk=8, local=3), dual_chunk(8, 3)),
}


@pytest.fixture(params=RULES, ids=str)
def rule(request: pytest.FixtureRequest) -> tuple[Any, Callable[[Tensor, Tensor], Tensor]]:
    """(the library's rule, its definition as a function of two positions)."""
    return RULES[request.param]


def pairwise_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    rotary: RotaryEmbedding | None,
    relative: Callable[[Tensor, Tensor], Tensor] = plain,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    log_n: Callable[[Tensor], Tensor] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    key_lengths: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and logsumexp in float64."""
    batch, heads, queries, head_dim = query.shape
    keys = key.shape[2]
    query, key, value = query.double(), key.double(), value.double()
    key = key.repeat_interleave(heads // key.shape[1], 1)
    value = value.repeat_interleave(heads // value.shape[1], 1)
    j = torch.arange(keys).double() if key_positions is None else key_positions.double()
    j = j.expand(batch, keys)
    if query_positions is not None:
        i = query_positions.double().expand(batch, queries)
    elif key_lengths is not None:
        last = torch.stack([j[b, max(int(n) - 1, 0)] for b, n in enumerate(key_lengths)])
        i = last[:, None] + torch.arange(1 - queries, 1)
    else:
        i = j[:, -1:] + torch.arange(1 - queries, 1)
    i, j = i[:, :, None], j[:, None, :]
    if log_n is not None:
        query = query * log_n(i)[:, None]
    if rotary is None:
        scores = query @ key.mT
    else:
        dim, angles = rotary.rotary_dim, rotary.inverse_frequencies().double()
        q, k = (_complex(x[..., :dim], rotary.layout) for x in (query, key))
        turn = torch.polar(torch.ones(()).double(), relative(i, j)[..., None] * angles)
        pairs = torch.einsum("bhqp,bqkp,bhkp->bhqk", q, turn, k.conj()).real
        rest = query[..., dim:] @ key[..., dim:].mT
        scores = pairs * float(rotary.attention_factor()) ** 2 + rest
    scores = scores * (1 / math.sqrt(head_dim) if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    visible = torch.ones(batch, 1, queries, keys, dtype=torch.bool)
    if causal:
        visible = visible & (j <= i)[:, None]
    if sliding_window is not None:
        visible = visible & ((i - j).abs() < sliding_window)[:, None]
    if key_lengths is not None:
        visible = visible & (torch.arange(keys) < key_lengths[:, None])[:, None, None]
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        visible = visible & attention_mask
    elif attention_mask is not None:
        scores = scores + attention_mask.double()
    weights = torch.where(visible, scores, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double().exp()[:, None, None]
    nothing = total == 0
    total = torch.where(nothing, 1.0, total)
    return (weights @ value) / total, total.log().masked_fill(nothing, -torch.inf).squeeze(-1)


def _complex(x: Tensor, layout: str) -> Tensor:
    if layout == "half":
        return torch.complex(*x.chunk(2, -1))
    return torch.complex(x[..., 0::2].contiguous(), x[..., 1::2].contiguous())


@pytest.fixture(scope="session")
def oracle() -> Callable[..., tuple[Tensor, Tensor]]:
    """`pairwise_attention`, the float64 twin."""
    return pairwise_attention


@dataclass
class Inputs:
    """Random queries, keys and values of a few sizes."""

    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    queries: int = 19
    keys: int = 19
    head_dim: int = 8
    value_dim: int | None = None
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def make(self, *, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        value_dim = self.head_dim if self.value_dim is None else self.value_dim
        shapes = (
            (self.batch, self.heads, self.queries, self.head_dim),
            (self.batch, self.kv_heads, self.keys, self.head_dim),
            (self.batch, self.kv_heads, self.keys, value_dim),
        )
        q, k, v = (
            torch.randn(shape, generator=generator, dtype=self.dtype).requires_grad_(grad)
            for shape in shapes
        )
        return q, k, v


@pytest.fixture(scope="session")
def inputs() -> type[Inputs]:
    """`Inputs(...).make()` gives query, key and value."""
    return Inputs


@pytest.fixture(
    params=[
        pytest.param(("cpu", torch.float32), marks=pytest.mark.interpret, id="interpreter"),
        pytest.param(("cuda", torch.float32), marks=pytest.mark.gpu, id="cuda-float32"),
        pytest.param(("cuda", torch.bfloat16), marks=pytest.mark.gpu, id="cuda-bfloat16"),
        pytest.param(("cuda", torch.float16), marks=pytest.mark.gpu, id="cuda-float16"),
    ]
)
def place(request: pytest.FixtureRequest) -> tuple[str, torch.dtype]:
    """Where the kernels run and in which dtype."""
    return request.param
