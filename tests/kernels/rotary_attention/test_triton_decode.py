"""Decoding in Triton: a few queries against a long cache give what the float64 twin gives."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ropewalk.blocks.rotary import LogN, Plain, ReRoPE, RotaryEmbedding, SelfExtend, YaRN
from ropewalk.kernels.rotary_attention import rotary_attention

pytest.importorskip("triton")

from ropewalk.kernels.rotary_attention import triton as kernels
from ropewalk.kernels.rotary_attention.triton import decode as module

Call = Callable[..., tuple[Tensor, Tensor]]
TILE = module.INTERPRETED.columns


@dataclasses.dataclass
class Decoder:
    """The public function on the kernel's device, answered by `decode` alone.

    Attributes:
        device: where the tensors go.
        splits: how many programs share a row's keys.
        change: applied to the problem before the kernel sees it.
    """

    device: torch.device
    splits: int = 2
    change: Callable[[Any], Any] = lambda problem: problem

    def __call__(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        def there(x: Any) -> Any:
            return x.to(self.device) if isinstance(x, Tensor) else x

        options = {name: there(x) for name, x in options.items()}
        query, key, value = map(there, tensors)
        output, lse = rotary_attention(
            query, key, value, backend="triton", return_logsumexp=True, **options
        )
        assert output.dtype == query.dtype
        assert lse.dtype == torch.float32
        return output, lse


@pytest.fixture
def decode(
    monkeypatch: pytest.MonkeyPatch, uninitialised: None, kernel_device: torch.device
) -> Decoder:
    decoder = Decoder(kernel_device)

    def forward(problem: Any) -> tuple[Tensor, Tensor]:
        assert module.suits(problem)
        return module.decode(decoder.change(problem))

    monkeypatch.setattr(kernels, "forward", forward)
    monkeypatch.setattr(module, "count_splits", lambda *_: decoder.splits)
    return decoder


def check(decode: Decoder, oracle: Call, tensors: tuple, rule: tuple, **options: Any) -> None:
    """Output and logsumexp of the kernel and of the twin."""
    if "rotary" not in options:
        options["rotary"] = RotaryEmbedding(tensors[0].shape[-1])
    output, lse = decode(*tensors, distance=rule[0], **options)
    if "key_lengths" in options:
        options["key_lengths"] = options["key_lengths"].clamp(max=tensors[1].shape[2])
    expected, expected_lse = oracle(*tensors, relative=rule[1], **options)
    torch.testing.assert_close(output.double().cpu(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(lse.double().cpu(), expected_lse, rtol=0, atol=1e-5)


def rerope(window: int) -> tuple:
    return ReRoPE(window=window), lambda i, j: (i - j).clamp(max=window)


PLAIN = Plain(), lambda i, j: i - j


@pytest.fixture
def cache(inputs: Any) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Three queries against 70 keys, if not said otherwise: tiles of 16, the last one ragged."""

    def make(**sizes: Any) -> tuple[Tensor, Tensor, Tensor]:
        usual = {"batch": 1, "queries": 3, "keys": 70, "head_dim": 16, "dtype": torch.float32}
        return inputs(**usual | sizes).make()

    return make


def test_every_rule(decode: Decoder, oracle: Call, cache: Call, rule: tuple) -> None:
    check(decode, oracle, cache(), rule)


@pytest.mark.parametrize("splits", [1, 3, 5, 20])
def test_any_number_of_splits(decode: Decoder, oracle: Call, cache: Call, splits: int) -> None:
    decode.splits = splits
    check(decode, oracle, cache(queries=1, kv_heads=1), rerope(20))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries"), [(3, 3, 1), (6, 2, 5), (4, 4, 16), (8, 1, 16)]
)
def test_heads_share_keys(
    decode: Decoder, oracle: Call, cache: Call, heads: int, kv_heads: int, queries: int
) -> None:
    tensors = cache(heads=heads, kv_heads=kv_heads, queries=queries, keys=40)
    check(decode, oracle, tensors, rerope(5))


@pytest.mark.parametrize(
    ("head_dim", "value_dim"),
    [(32, 32), (72, 72), (80, 48), (96, 96), (128, 128), (192, 128), (256, 256)],
)
def test_head_sizes(
    decode: Decoder, oracle: Call, cache: Call, monkeypatch, head_dim: int, value_dim: int
) -> None:
    if max(head_dim, value_dim) > 128:  # these ship for half precision, tested below
        monkeypatch.setattr(module, "suits", lambda _: True)
        if decode.device.type == "cuda":
            pytest.skip("no configuration for wide heads in float32")
    tensors = cache(kv_heads=1, head_dim=head_dim, value_dim=value_dim, keys=40)
    check(decode, oracle, tensors, rerope(9))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (20, 20), (40, 12)])
def test_layouts_and_partial_rotary(
    decode: Decoder, oracle: Call, cache: Call, layout: Any, head_dim: int, rotary_dim: int
) -> None:
    rotary = RotaryEmbedding(rotary_dim, layout=layout)
    check(decode, oracle, cache(kv_heads=1, head_dim=head_dim), rerope(20), rotary=rotary)


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
def test_options(decode: Decoder, oracle: Call, cache: Call, options: dict) -> None:
    check(decode, oracle, cache(), rerope(20), **options)


@pytest.mark.parametrize("options", [{}, {"sliding_window": 25}, {"rotary": None}], ids=str)
def test_bidirectional(decode: Decoder, oracle: Call, cache: Call, options: dict) -> None:
    check(decode, oracle, cache(), PLAIN, causal=False, **options)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("boolean", [True, False], ids=["boolean", "additive"])
def test_attention_mask(
    decode: Decoder, oracle: Call, cache: Call, heads: int, boolean: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, heads, 3, 70, generator=generator)
    mask = noise > -0.5 if boolean else noise.masked_fill(noise < -1, -torch.inf)
    mask[0, :, 1] = False if boolean else -torch.inf  # a query that sees nothing
    tensors = cache(batch=2, kv_heads=1)
    check(decode, oracle, tensors, rerope(20), attention_mask=mask)
    check(decode, oracle, tensors, rerope(20), attention_mask=mask[:1, :, :1])


LENGTHS = torch.tensor([0, 1, 16, 33, 70, 999])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_lengths_differ_by_row(decode: Decoder, oracle: Call, cache: Call, dtype: Any) -> None:
    tensors = cache(batch=6, heads=2, kv_heads=1)
    check(decode, oracle, tensors, rerope(20), key_lengths=LENGTHS.to(dtype))


def test_rules_and_lengths(decode: Decoder, oracle: Call, cache: Call, rule: tuple) -> None:
    tensors = cache(batch=2, heads=2, kv_heads=1)
    check(decode, oracle, tensors, rule, key_lengths=torch.tensor([33, 70]))


def test_what_a_row_does_not_have_is_not_read(decode: Decoder, oracle: Call, cache: Call) -> None:
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
def test_positions(decode: Decoder, oracle: Call, cache: Call, name: str) -> None:
    tensors = cache(batch=2, heads=2, kv_heads=1)
    check(decode, oracle, tensors, rerope(20), **at(POSITIONS[name]))


@pytest.mark.parametrize("name", ["padded", "shuffled"])
def test_rules_and_positions(
    decode: Decoder, oracle: Call, cache: Call, rule: tuple, name: str
) -> None:
    check(decode, oracle, cache(heads=2, kv_heads=1), rule, **at(POSITIONS[name].view(-1, 70)[-1]))


def test_fractional_positions(decode: Decoder, oracle: Call, cache: Call) -> None:
    """The edge between branches lies between whole positions."""

    def relative(i: Tensor, j: Tensor) -> Tensor:
        return torch.where(i.floor() - j.floor() < 9, i - j, 9.0)

    rule = ReRoPE(window=9), relative
    check(decode, oracle, cache(kv_heads=1), rule, **at(torch.arange(70) * 0.75))


def test_positions_with_lengths_window_and_units(
    decode: Decoder, oracle: Call, cache: Call
) -> None:
    rule = SelfExtend(group=3, window=7)

    def relative(i: Tensor, j: Tensor) -> Tensor:
        grouped = (i / 3).floor() - (j / 3).floor() + 7 - 7 // 3
        return torch.where(i - j < 7, i - j, grouped)

    tensors = cache(batch=2, heads=2, kv_heads=1)
    check(
        decode, oracle, tensors, (rule, relative), key_positions=torch.arange(70) * 2,
        key_lengths=torch.tensor([61, 17]), sliding_window=40,
    )  # fmt: skip


def test_strides(decode: Decoder, oracle: Call, cache: Call) -> None:
    """Caches are slices of larger ones, and keys come with heads behind the sequence."""
    query, key, value = cache()
    roomy = torch.full((1, 2, 100, 40), torch.nan)
    roomy[:, :, 10:80, 8:24] = key
    behind = value.transpose(1, 2).contiguous().transpose(1, 2)
    across = query.mT.contiguous().mT
    check(decode, oracle, (query, roomy[:, :, 10:80, 8:24], behind), rerope(20))
    check(decode, oracle, (across, key.mT.contiguous().mT, value.mT.contiguous().mT), rerope(20))


@pytest.mark.parametrize("queries", [1, 4])
def test_only_near_keys_are_rotated(
    decode: Decoder, oracle: Call, cache: Call, queries: int
) -> None:
    keys, window = 150, 20
    tensors = cache(queries=queries, keys=keys, kv_heads=1)
    # What lies beyond the window, in whole tiles, meets no position; a key within it does.
    unturned = (keys - queries - window + 1) // TILE * TILE

    def misplace(problem: Any, count: int) -> Any:
        angles = problem.key_angles.clone()
        angles[0, :, :count] += 7.7
        angles[1] += 7.7
        return dataclasses.replace(problem, key_angles=angles)

    decode.change = lambda problem: misplace(problem, unturned)
    check(decode, oracle, tensors, rerope(window))
    decode.change = lambda problem: misplace(problem, keys - window + 1)
    with pytest.raises(AssertionError, match="not close"):
        check(decode, oracle, tensors, rerope(window))


def test_prefill_equals_decoding(decode: Decoder, monkeypatch, cache: Call, rule: tuple) -> None:
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
def test_random_shapes(decode: Decoder, oracle: Call, inputs: Any, data: Any) -> None:
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
        decode, oracle, tensors, rerope(draw(st.integers(1, 50))),
        rotary=RotaryEmbedding(2 * pairs, layout=draw(st.sampled_from(["half", "interleaved"]))),
        sliding_window=draw(st.none() | st.integers(1, 100)),
        softcap=draw(st.none() | st.floats(1.0, 9.0)),
    )  # fmt: skip


def two_matrices(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """ReRoPE by two whole score matrices, every product in the dtype of the inputs."""
    queries, keys, dim = query.shape[2], key.shape[2], query.shape[3]
    i = torch.arange(keys - queries, keys, device=query.device)[:, None]
    j = torch.arange(keys, device=query.device)
    frequencies = RotaryEmbedding(dim).inverse_frequencies().to(query.device, torch.float64)

    def turn(x: Tensor, positions: Tensor) -> Tensor:
        angle = positions.double().reshape(-1, 1) * frequencies
        a, b = x.double().chunk(2, -1)
        turned = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
        return torch.cat(turned, -1).to(x.dtype)

    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    near = turn(query, i) @ turn(key, j).mT
    far = turn(query, torch.full_like(i, window)) @ key.mT
    scores = torch.where(i - j < window, near, far) * dim**-0.5
    weights = scores.masked_fill(j > i, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 128, 192])
def test_half_precision(
    decode: Decoder, oracle: Call, cache: Call, as_exact_as: Callable, dtype: Any, head_dim: int
) -> None:
    tensors = cache(queries=2, keys=300, head_dim=head_dim, dtype=dtype)
    output, lse = decode(*tensors, rotary=RotaryEmbedding(head_dim), distance=ReRoPE(64))
    truth, true_lse = oracle(*tensors, rotary=RotaryEmbedding(head_dim), relative=rerope(64)[1])
    # The interpreter rounds to bfloat16 by cutting bits off.
    times = 4.0 if decode.device.type == "cpu" and dtype == torch.bfloat16 else 2.0
    as_exact_as(two_matrices(*tensors, 64), output, truth, times=times)
    torch.testing.assert_close(lse.double().cpu(), true_lse, rtol=0, atol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [512, 10**6], ids=["near-and-far", "near"])
def test_long_cache_on_a_device(decode: Decoder, as_exact_as: Callable, window: int) -> None:
    """All of the shipped splits; checked against float64 on the device, by key heads."""
    generator = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(1, 32, 1, 128, device="cuda", generator=generator)
    key, value = torch.randn(2, 1, 8, 65_537, 128, device="cuda", generator=generator)
    halves = [x.bfloat16() for x in (query, key, value)]
    for decode.splits in (1, 33, 264):
        output, _ = decode(*halves, rotary=RotaryEmbedding(128), distance=ReRoPE(window))
        truth = two_matrices(*(x.double() for x in halves), window)
        as_exact_as(two_matrices(*halves, window), output, truth)


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
