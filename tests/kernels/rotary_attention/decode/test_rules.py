"""Decoding gives what the float64 twin gives, under every rule and option."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ropewalk.blocks.rotary import LogN, Plain, RotaryEmbedding, YaRN
from ropewalk.kernels.rotary_attention import rotary_attention

pytest.importorskip("triton")

from ropewalk.kernels.rotary_attention.triton import decode as module

Check = Callable[..., None]
Cache = Callable[..., tuple[Tensor, Tensor, Tensor]]

PLAIN = Plain(), lambda i, j: i - j


def test_every_rule(check: Check, cache: Cache, rule: tuple) -> None:
    check(cache(), rule)


@pytest.mark.parametrize("splits", [1, 3, 5, 20])
def test_any_number_of_splits(
    check: Check, decode: Any, cache: Cache, rerope: Any, splits: int
) -> None:
    decode.splits = splits
    check(cache(queries=1, kv_heads=1), rerope(20))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries"), [(3, 3, 1), (6, 2, 5), (4, 4, 16), (8, 1, 16)]
)
def test_heads_share_keys(
    check: Check, cache: Cache, rerope: Any, heads: int, kv_heads: int, queries: int
) -> None:
    tensors = cache(heads=heads, kv_heads=kv_heads, queries=queries, keys=40)
    check(tensors, rerope(5))


@pytest.mark.parametrize(
    ("head_dim", "value_dim"),
    [(32, 32), (72, 72), (80, 48), (96, 96), (128, 128), (192, 128), (256, 256)],
)
def test_head_sizes(
    check: Check, decode: Any, cache: Cache, rerope: Any, monkeypatch, head_dim: int, value_dim: int
) -> None:
    if max(head_dim, value_dim) > 128:  # these ship for half precision, tested below
        monkeypatch.setattr(module, "suits", lambda _: True)
        if decode.device.type == "cuda":
            pytest.skip("no configuration for wide heads in float32")
    tensors = cache(kv_heads=1, head_dim=head_dim, value_dim=value_dim, keys=40)
    check(tensors, rerope(9))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (20, 20), (40, 12)])
def test_layouts_and_partial_rotary(
    check: Check, cache: Cache, rerope: Any, layout: Any, head_dim: int, rotary_dim: int
) -> None:
    rotary = RotaryEmbedding(rotary_dim, layout=layout)
    check(cache(kv_heads=1, head_dim=head_dim), rerope(20), rotary=rotary)


@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 2.0},
        {"sliding_window": 30},
        {"sliding_window": 8, "softcap": 3.0},
        {"log_n": LogN(16)},
        {"sinks": torch.tensor([0.3, -1.0, 4.0, 0.0])},
        {"scale": 0.7},
        {"rotary": RotaryEmbedding(16, frequency=YaRN(factor=4.0, original_length=16))},
    ],
    ids=lambda options: "-".join(options),
)
def test_options(check: Check, cache: Cache, rerope: Any, options: dict) -> None:
    check(cache(), rerope(20), **options)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 25}, {"rotary": None}], ids=str)
def test_bidirectional(check: Check, cache: Cache, options: dict) -> None:
    check(cache(), PLAIN, causal=False, **options)


def test_prefill_equals_decoding(decode: Any, cache: Cache, monkeypatch, rule: tuple) -> None:
    query, key, value = cache(queries=24, keys=24, heads=2, kv_heads=1)
    options = {"rotary": RotaryEmbedding(16), "distance": rule[0]}
    steps = [
        decode(query[:, :, n : n + 1], key[:, :, : n + 1], value[:, :, : n + 1], **options)[0]
        for n in range(0, 24, 7)
    ]
    whole = rotary_attention(query, key, value, backend="reference", **options)[:, :, ::7]
    torch.testing.assert_close(torch.cat(steps, 2).cpu(), whole, rtol=0, atol=1e-5)


@given(data=st.data())
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_random_shapes(check: Check, decode: Any, inputs: Any, rerope: Any, data: Any) -> None:
    draw = data.draw
    kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    keys = draw(st.integers(1, 90))
    pairs, rest = draw(st.integers(2, 20)), draw(st.integers(0, 9))
    tensors = inputs(
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        queries=draw(st.integers(1, min(keys, 16))),
        keys=keys,
        head_dim=2 * pairs + rest,
        value_dim=draw(st.integers(1, 40)),
        dtype=torch.float32,
    ).make()
    decode.splits = draw(st.integers(1, 4))
    check(
        tensors, rerope(draw(st.integers(1, 50))),
        rotary=RotaryEmbedding(2 * pairs, layout=draw(st.sampled_from(["half", "interleaved"]))),
        sliding_window=draw(st.none() | st.integers(1, 100)),
        softcap=draw(st.none() | st.floats(1.0, 9.0)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("programs", "tiles", "slots", "expected"),
    [
        (8, 2048, 264, 32),  # one row of 128k keys, 8 key heads, an H200
        (1, 2048, 264, 251),
        (264, 2048, 264, 1),
        (300, 2048, 264, 6),  # seven waves, nearly full, for two of which one would be nearly empty
        (8, 3, 264, 1),  # nothing to share out
        (8, 40, 264, 10),
        (1000, 2048, 1, 1),
    ],
)
def test_splits_fill_the_chip(programs: int, tiles: int, slots: int, expected: int) -> None:
    assert module.count_splits(programs, tiles, slots) == expected
