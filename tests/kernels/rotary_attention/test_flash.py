"""The composition from attention that exists: which problems it takes, and what it asks of whom."""

import pytest
import torch

from ropewalk.blocks.rotary import LogN, Plain, ReRoPE, RotaryEmbedding, SelfExtend
from ropewalk.kernels.rotary import rotate
from ropewalk.kernels.rotary_attention import rotary_attention
from ropewalk.kernels.rotary_attention.flash import cpu, tiles

ROTARY = RotaryEmbedding(8)


def results(tensors, **options):
    """Output and gradients."""
    output = rotary_attention(*tensors, **{"rotary": ROTARY, **options})
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    return output, *torch.autograd.grad((output * weight).sum(), tensors)


def assert_alike(got, expected, tolerance=1e-11):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sliding_window": 9},
        {"log_n": LogN(4), "scale": 0.7},
        {"key_lengths": torch.tensor([40, 150])},
        {"key_lengths": torch.tensor([0, 149])},
        {"query_positions": torch.arange(30, 130), "key_positions": torch.arange(20, 170)},
        {"query_positions": torch.arange(100) - 7, "key_positions": torch.arange(150)},
    ],
    ids=lambda options: "-".join(options) or "by index",
)
def test_equals_the_reference(inputs, rule, options):
    """At the shipped block sizes, with more queries than a block holds."""
    if "sliding_window" in options and rule[0].unit > 1:
        pytest.skip("a sliding window is refused together with chunks")
    if "query_positions" in options and rule[0].unit > 1:
        options = {**options, "key_positions": torch.arange(150)}
    tensors = inputs(queries=100, keys=150).make(grad=True)
    options = {"distance": rule[0], **options}
    assert_alike(
        results(tensors, backend="flash", **options),
        results(tensors, backend="reference", **options),
    )


@pytest.mark.parametrize("window", [1, 63, 64, 65, 300, 512, 513, 600])
def test_windows_around_the_block_sizes(inputs, window):
    tensors = inputs(batch=1, queries=1300, keys=1300).make(grad=True)
    options = {"distance": ReRoPE(window)}
    assert_alike(
        results(tensors, backend="flash", **options),
        results(tensors, backend="reference", **options),
    )


REFUSED = {
    "mask": ({"attention_mask": torch.ones(1, 1, 1, 19, dtype=torch.bool)}, "no attention_mask"),
    "softcap": ({"softcap": 3.0}, "knows no softcap"),
    "order": ({"key_positions": torch.arange(19).flip(0)}, "count up by one"),
    "gap": ({"key_positions": torch.arange(19) * 2}, "count up by one"),
    "apart": (
        {"query_positions": torch.stack((torch.arange(19), torch.arange(19) + 1))},
        "count up by one",
    ),
    "beyond the keys": ({"query_positions": torch.arange(19) + 1}, "each query at a key"),
    "window both ways": ({"sliding_window": 3, "causal": False}, "got causal=False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_take_is_refused_with_the_reason(inputs, case):
    options, message = REFUSED[case]
    tensors = inputs().make()
    with pytest.raises(ValueError, match=f"'flash' cannot run.*{message}"):
        rotary_attention(*tensors, rotary=ROTARY, backend="flash", **options)
    got = rotary_attention(*tensors, rotary=ROTARY, return_logsumexp=True, **options)
    expected = rotary_attention(
        *tensors, rotary=ROTARY, backend="reference", return_logsumexp=True, **options
    )
    assert_alike(got, expected)


def test_wide_values_are_refused(inputs):
    with pytest.raises(ValueError, match="value_dim 5 and head_dim 8"):
        rotary_attention(*inputs(value_dim=5).make(), rotary=ROTARY, backend="flash")


def test_chunks_must_begin_where_positions_do(inputs, rule):
    tensors, at = inputs().make(), torch.arange(19) + 1
    options = {"distance": rule[0], "query_positions": at, "key_positions": at}
    if rule[0].unit == 1:
        rotary_attention(*tensors, rotary=ROTARY, backend="flash", **options)
        return
    with pytest.raises(ValueError, match="count up by one"):
        rotary_attention(*tensors, rotary=ROTARY, backend="flash", **options)


def test_sinks_of_minus_infinity_are_no_sinks(inputs):
    q, k, v = inputs(queries=13, keys=6).make()
    options = {"rotary": ROTARY, "distance": ReRoPE(3), "backend": "flash"}
    plain = rotary_attention(q, k, v, return_logsumexp=True, **options)
    sinks = torch.full((4,), -torch.inf, dtype=torch.float64)
    assert_alike(rotary_attention(q, k, v, sinks=sinks, return_logsumexp=True, **options), plain)


def test_sinks_of_minus_infinity_have_a_gradient_of_zero(inputs):
    """Also where a query sees no key, so that −∞ is all its scores' logsumexp."""
    tensors = inputs(queries=13, keys=6).make(grad=True)
    sinks = torch.tensor([-torch.inf, 0.5, -torch.inf, 1.0]).double().requires_grad_()
    of_sinks = [
        torch.autograd.grad(
            rotary_attention(
                *tensors, rotary=ROTARY, distance=ReRoPE(3), sinks=sinks, backend=backend
            ).sum(),
            sinks,
        )[0]
        for backend in ("flash", "reference")
    ]
    torch.testing.assert_close(*of_sinks, rtol=0, atol=1e-12)
    assert (of_sinks[0][::2] == 0).all()
    assert (of_sinks[0][1::2] != 0).all()


def test_tiles_waste_little():
    """Scores that are computed, over those that are seen, at 8192 tokens."""
    length = 8192
    for window in (128, 512, 1024, 4096):
        for backward in (False, True):
            computed = 0.0
            for tile in tiles.tiles(length, length, causal=True, window=window, backward=backward):
                area = tile.blocks * tile.block * tile.span
                computed += area / 2 if tile.causal or tile.reversed else area
            seen = window * length - window**2 / 2
            assert computed <= seen * (3 if backward and window == 128 else 1.6), (window, backward)
            assert computed >= 0.99 * seen


def test_plain_attention_with_extras_is_fused(inputs):
    """What torch's attention does not return or know takes the same kernels."""
    tensors = inputs(queries=100, keys=100).make(grad=True)
    options = {"distance": Plain(), "sliding_window": 17}
    assert_alike(
        results(tensors, backend="flash", **options),
        results(tensors, backend="reference", **options),
    )
    _, lse = rotary_attention(*tensors, rotary=ROTARY, return_logsumexp=True)
    _, expected = rotary_attention(
        *tensors, rotary=ROTARY, return_logsumexp=True, backend="reference"
    )
    torch.testing.assert_close(lse, expected, rtol=0, atol=1e-11)


def test_self_extend_in_bfloat16_errs_no_more_than_the_reference(inputs, monkeypatch):
    """Where bfloat16 is computed in float32."""
    monkeypatch.setattr(cpu, "_multiplies_bfloat16", lambda: False)
    exact = inputs(queries=200, keys=200).make()
    half = [x.bfloat16() for x in exact]
    options = {"rotary": ROTARY, "distance": SelfExtend(group=4, window=30)}
    wanted = rotary_attention(*(x.double() for x in half), backend="reference", **options)
    errors = [
        (rotary_attention(*half, backend=backend, **options) - wanted).abs().max()
        for backend in ("flash", "reference")
    ]
    assert errors[0] <= 1.1 * errors[1]


def two_matrices(query, key, value, *, distance):
    """ReRoPE in plain torch, in the dtype of its inputs, rotated in float32."""
    queries, window = query.shape[2], distance.window

    def turned(x, at):
        angle = at.to(torch.promote_types(x.dtype, torch.float32))[:, None]
        angle = angle * ROTARY.inverse_frequencies().to(angle.dtype)
        return rotate(x.to(angle.dtype), angle.cos(), angle.sin(), layout="half").to(x.dtype)

    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    at = torch.arange(queries)
    near = turned(query, at) @ turned(key, at).mT
    far = turned(query, torch.full_like(at, window)) @ key.mT
    apart = at[:, None] - at
    scores = torch.where(apart < window, near, far) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(apart < 0, -torch.inf)
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("native", [False, True], ids=["in float32", "as it is"])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("window", [20, 600])
def test_bfloat16_is_as_exact_as_plain_torch(
    inputs, as_exact_as, monkeypatch, native, kv_heads, window
):
    """On processors with fast products of bfloat16 and on those without, all tiles."""
    monkeypatch.setattr(cpu, "_multiplies_bfloat16", lambda: native)
    half = inputs(queries=1300, keys=1300, kv_heads=kv_heads, dtype=torch.float32).make()
    half = [x.bfloat16().requires_grad_() for x in half]
    exact = [x.detach().double().requires_grad_() for x in half]
    weight = torch.randn(half[0].shape, generator=torch.Generator().manual_seed(3))
    rule = ReRoPE(window)

    def with_gradients(output, tensors):
        weighted = (output * weight.to(output.dtype)).sum()
        return output, *torch.autograd.grad(weighted, tensors)

    ours = rotary_attention(*half, rotary=ROTARY, distance=rule, backend="flash")
    peer, truth = (two_matrices(*tensors, distance=rule) for tensors in (half, exact))
    assert ours.dtype == torch.bfloat16
    for a, b, c in zip(
        with_gradients(peer, half), with_gradients(ours, half), with_gradients(truth, exact),
        strict=True,
    ):  # fmt: skip
        as_exact_as(a, b, c)


def test_bfloat16_goes_in_as_it_is_where_that_is_fast(inputs, monkeypatch):
    query, *_ = inputs().make()
    for native in (False, True):
        monkeypatch.setattr(cpu, "_multiplies_bfloat16", lambda native=native: native)
        assert cpu.dtype(query.bfloat16()) == (torch.bfloat16 if native else torch.float32)
        assert cpu.dtype(query.half()) == torch.float32
        assert cpu.dtype(query.double()) == torch.float64
