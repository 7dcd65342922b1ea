"""Positions that are given: fractional ones, and ones too large for 32 bits.

Far-off positions are tried with rules whose angles do not depend on them, because angles are
float32 products in every back end; what is seen and through which branch must still be exact.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.rotary import DualChunk, Plain, ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import Branch, PositionMap, rotary_attention

pytest.importorskip("triton")

pytestmark = [pytest.mark.usefixtures("uninitialised"), pytest.mark.interpret]

KEYS = 40


@dataclass(frozen=True)
class Steps:
    """Branch n turns the query by n, whatever the positions are."""

    edges: tuple[int, ...]
    unit: int = 1

    @property
    def branches(self) -> tuple[Branch, ...]:
        still = PositionMap(divisor=torch.inf)
        return tuple(
            Branch(PositionMap(divisor=torch.inf, offset=n), still)
            for n in range(len(self.edges) + 1)
        )


def make(queries: int, batch: int = 1) -> tuple[list[Tensor], Tensor]:
    """Query, key and value, and the weights of a random loss."""
    generator = torch.Generator().manual_seed(2)
    rows = (queries, KEYS, KEYS, queries)
    *leaves, weight = (torch.randn(batch, 1, n, 16, generator=generator) for n in rows)
    return [x.requires_grad_() for x in leaves], weight


def gradients(result: tuple[Tensor, Tensor], leaves: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Output and logsumexp, and, except of decoding, which has a kernel of its own, gradients."""
    output, lse = result
    if lse.shape[-1] < KEYS:
        return [output, lse]
    finite = lse.masked_fill(lse == -torch.inf, 0)
    return [output, lse, *torch.autograd.grad((output * weight).sum() + finite.sum(), leaves)]


def results(queries: int, backend: Any, *, batch: int = 1, **options: Any) -> list[Tensor]:
    leaves, weight = make(queries, batch)
    options = {"rotary": RotaryEmbedding(16), "length": 64, **options}
    output = rotary_attention(*leaves, backend=backend, return_logsumexp=True, **options)
    return gradients(output, leaves, weight)


def compare(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def compare_back_ends(queries: int, **options: Any) -> None:
    compare(results(queries, "triton", **options), results(queries, "reference", **options))


KINDS = pytest.mark.parametrize("queries", [KEYS, 3], ids=["prefill", "decoding"])


@KINDS
@pytest.mark.parametrize("base", [-(2**31) - 20, 2.0**26 + 0.5], ids=["int64", "float64"])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (Plain(), {"rotary": None}),
        (Plain(), {"rotary": None, "sliding_window": 9}),
        (Plain(), {"rotary": None, "sliding_window": 9, "causal": False}),
        (Steps((11,)), {}),
        (DualChunk(chunk=13, local=4), {}),
        (Steps((1, 2), unit=7), {}),
    ],
    ids=["plain", "sliding", "bidirectional", "edge", "dual-chunk", "unit"],
)
def test_far_from_zero(rule: Any, options: dict[str, Any], base: float, queries: int) -> None:
    at = torch.arange(KEYS) + torch.tensor(base, dtype=torch.float64 if base % 1 else torch.int64)
    compare_back_ends(
        queries, distance=rule, query_positions=at[-queries:], key_positions=at, **options
    )


@KINDS
def test_rows_far_from_each_other(queries: int) -> None:
    at = torch.stack((torch.arange(KEYS), torch.arange(KEYS) + 5 * 2**31 - 20))
    compare_back_ends(
        queries, batch=2, distance=Steps((1, 2), unit=7),
        query_positions=at[:, -queries:], key_positions=at,
    )  # fmt: skip


@pytest.mark.parametrize("far", [2**30, 2**40, 2.0**26 + 0.5], ids=["30", "40", "float64"])
@pytest.mark.parametrize("starts", [[0, 17, KEYS], [0, 0, 17, 17, KEYS]], ids=["two", "empty"])
def test_packed_sequences_far_from_each_other(far: float, starts: list[int]) -> None:
    step = 0.25 if far % 1 else 1
    near, away = torch.arange(17) * step, torch.arange(KEYS - 17) * step
    at = torch.cat((near, away + torch.tensor(far, dtype=torch.float64 if far % 1 else None)))
    compare_back_ends(
        KEYS, rotary=None, query_positions=at, key_positions=at,
        cu_seqlens_query=torch.tensor(starts),
    )  # fmt: skip


@KINDS
def test_keys_put_out_of_reach_stay_hidden(queries: int) -> None:
    at = torch.arange(KEYS)
    away = torch.where(at < 30, at, torch.iinfo(torch.int64).max)
    compare_back_ends(queries, rotary=None, query_positions=at[-queries:], key_positions=away)


def _floored(i: Tensor, j: Tensor) -> Tensor:
    return torch.where(i.floor() - j.floor() < 7, i - j, 7.0)


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rule", "relative", "options"),
    [
        (Plain(), torch.sub, {}),
        (Plain(), torch.sub, {"sliding_window": 5}),
        (ReRoPE(window=7), _floored, {}),
    ],
    ids=["plain", "sliding", "rerope"],
)
def test_fractional(
    rule: Any, relative: Any, options: dict[str, Any], dtype: torch.dtype, queries: int, oracle: Any
) -> None:
    at = torch.arange(KEYS, dtype=dtype) / 2
    options = {"query_positions": at[-queries:] + 0.5, "key_positions": at, **options}
    leaves, weight = make(queries)
    truth = oracle(*leaves, rotary=RotaryEmbedding(16), relative=relative, **options)
    expected = [x.float() for x in gradients(truth, leaves, weight)]
    compare(results(queries, "triton", distance=rule, **options), expected)
