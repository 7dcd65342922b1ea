"""Decoding from caches: lengths that differ by row, masks, positions, strides, far keys."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.rotary import ReRoPE, RotaryEmbedding, SelfExtend

pytest.importorskip("triton")

Check = Callable[..., None]
Cache = Callable[..., tuple[Tensor, Tensor, Tensor]]


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("boolean", [True, False], ids=["boolean", "additive"])
def test_attention_mask(check: Check, cache: Cache, rerope: Any, heads: int, boolean: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, heads, 3, 70, generator=generator)
    mask = noise > -0.5 if boolean else noise.masked_fill(noise < -1, -torch.inf)
    mask[0, :, 1] = False if boolean else -torch.inf  # a query that sees nothing
    tensors = cache(batch=2, kv_heads=1)
    check(tensors, rerope(20), attention_mask=mask)
    check(tensors, rerope(20), attention_mask=mask[:1, :, :1])


LENGTHS = torch.tensor([0, 1, 16, 33, 70, 999])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_lengths_differ_by_row(check: Check, cache: Cache, rerope: Any, dtype: Any) -> None:
    tensors = cache(batch=6, heads=2, kv_heads=1)
    check(tensors, rerope(20), key_lengths=LENGTHS.to(dtype))


def test_rules_and_lengths(check: Check, cache: Cache, rule: tuple) -> None:
    tensors = cache(batch=2, heads=2, kv_heads=1)
    check(tensors, rule, key_lengths=torch.tensor([33, 70]))


def test_what_a_row_does_not_have_is_not_read(
    decode: Any, oracle: Any, cache: Cache, rerope: Any
) -> None:
    query, key, value = cache(batch=6, heads=2, kv_heads=1)
    rotary, lengths = RotaryEmbedding(16), LENGTHS.clamp(max=70)
    expected, _ = oracle(
        query, key, value, rotary=rotary, relative=rerope(20)[1], key_lengths=lengths
    )
    for row, length in enumerate(lengths):
        key[row, :, length:] = torch.nan
        value[row, :, length:] = torch.nan
    output, lse = decode(query, key, value, rotary=rotary, distance=ReRoPE(20), key_lengths=LENGTHS)
    torch.testing.assert_close(output.double().cpu(), expected, rtol=0, atol=1e-5)
    assert (output[0] == 0).all()
    assert (lse[0] == -torch.inf).all()


POSITIONS = {
    "padded": (torch.arange(70) - torch.tensor([[0], [23]])).clamp(min=0),
    "gaps": torch.arange(70) * 3 + 5,
    "shuffled": torch.randperm(70, generator=torch.Generator().manual_seed(1)),
    "floating": torch.arange(70) + 100.0,
}


def at(keys: Tensor) -> dict[str, Tensor]:
    return {"key_positions": keys, "query_positions": keys[..., -3:].sort().values}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions(check: Check, cache: Cache, rerope: Any, name: str) -> None:
    tensors = cache(batch=2, heads=2, kv_heads=1)
    check(tensors, rerope(20), **at(POSITIONS[name]))


@pytest.mark.parametrize("name", ["padded", "shuffled"])
def test_rules_and_positions(check: Check, cache: Cache, rule: tuple, name: str) -> None:
    check(cache(heads=2, kv_heads=1), rule, **at(POSITIONS[name].view(-1, 70)[-1]))


def test_fractional_positions(check: Check, cache: Cache) -> None:
    """The edge between branches lies between whole positions."""

    def relative(i: Tensor, j: Tensor) -> Tensor:
        return torch.where(i.floor() - j.floor() < 9, i - j, 9.0)

    rule = ReRoPE(window=9), relative
    check(cache(kv_heads=1), rule, **at(torch.arange(70) * 0.75))


def test_positions_with_lengths_window_and_units(check: Check, cache: Cache) -> None:
    rule = SelfExtend(group=3, window=7)

    def relative(i: Tensor, j: Tensor) -> Tensor:
        grouped = (i / 3).floor() - (j / 3).floor() + 7 - 7 // 3
        return torch.where(i - j < 7, i - j, grouped)

    tensors = cache(batch=2, heads=2, kv_heads=1)
    check(
        tensors, (rule, relative), key_positions=torch.arange(70) * 2,
        key_lengths=torch.tensor([61, 17]), sliding_window=40,
    )  # fmt: skip


def test_strides(check: Check, cache: Cache, rerope: Any) -> None:
    """Caches are slices of larger ones, and keys come with heads behind the sequence."""
    query, key, value = cache()
    roomy = torch.full((1, 2, 100, 40), torch.nan)
    roomy[:, :, 10:80, 8:24] = key
    behind = value.transpose(1, 2).contiguous().transpose(1, 2)
    across = query.mT.contiguous().mT
    check((query, roomy[:, :, 10:80, 8:24], behind), rerope(20))
    check((across, key.mT.contiguous().mT, value.mT.contiguous().mT), rerope(20))


@pytest.mark.parametrize("queries", [1, 4])
def test_only_near_keys_are_rotated(
    check: Check, decode: Any, cache: Cache, rerope: Any, queries: int
) -> None:
    keys, window = 150, 20
    tensors = cache(queries=queries, keys=keys, kv_heads=1)
    # What lies beyond the window, in whole tiles, meets no position; a key within it does.
    tile = 16 if decode.device.type == "cpu" else 64
    unturned = (keys - queries - window + 1) // tile * tile

    def misplace(problem: Any, count: int) -> Any:
        where = problem.visibility
        given = dataclasses.replace(
            problem, query_positions=where.query_positions, key_positions=where.key_positions
        )
        # Made when they are first asked for, and kept.
        given.key_angles[0, :, :count] += 7.7
        given.key_angles[1] += 7.7
        return given

    decode.change = lambda problem: misplace(problem, unturned)
    check(tensors, rerope(window))
    decode.change = lambda problem: misplace(problem, keys - window + 1)
    with pytest.raises(AssertionError, match="not close"):
        check(tensors, rerope(window))
