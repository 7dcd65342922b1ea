"""The composition from attention that exists: which problems it takes, and what it asks of whom."""

import sys
from types import ModuleType

import pytest
import torch

from ropewalk.blocks.rotary import LogN, Plain, ReRoPE, RotaryEmbedding, SelfExtend
from ropewalk.kernels.rotary_attention import cuda, flash, rotary_attention, tiles

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


# What CUDA devices run, by stand-ins of the same signature that compute it densely.


def dense_scores(query, key, scale, causal, left, right, softcap):
    """Scores (batch, heads, query, key) of tensors (batch, sequence, heads, dim), and the slope."""
    keys = key.repeat_interleave(query.shape[2] // key.shape[2], 2)
    scores, slope = torch.einsum("bqhd,bkhd->bhqk", query, keys) * scale, 1.0
    if softcap:
        bounded = torch.tanh(scores / softcap)
        scores, slope = softcap * bounded, 1 - bounded.square()
    opposite = torch.arange(query.shape[1])[:, None] + key.shape[1] - query.shape[1]
    ahead = torch.arange(key.shape[1]) - opposite
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if causal or right >= 0:
        hidden |= ahead > (0 if causal else right)
    if left >= 0:
        hidden |= ahead < -left
    return scores.masked_fill(hidden, -torch.inf), slope


def dense_forward(query, key, value, scale, causal, left, right, softcap=0.0):
    scores, _ = dense_scores(query, key, scale, causal, left, right, softcap)
    values = value.repeat_interleave(query.shape[2] // value.shape[2], 2)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), values), scores.logsumexp(-1)


def dense_backward(dout, query, key, value, out, lse, scale, causal, left, right, softcap=0.0):
    """With the output and logsumexp that are given, whatever they are, as the kernels do it."""
    groups = query.shape[2] // key.shape[2]
    scores, slope = dense_scores(query, key, scale, causal, left, right, softcap)
    weights = (scores - lse[..., None]).exp()
    dp = torch.einsum("bqhd,bkhd->bhqk", dout, value.repeat_interleave(groups, 2))
    delta = (dout * out).sum(-1).transpose(1, 2)[..., None]
    ds = weights * (dp - delta) * slope * scale
    dq = torch.einsum("bhqk,bkhd->bqhd", ds, key.repeat_interleave(groups, 2))
    dk = torch.einsum("bhqk,bqhd->bkhd", ds, query).unflatten(2, (-1, groups)).sum(3)
    dv = torch.einsum("bhqk,bqhd->bkhd", weights, dout).unflatten(2, (-1, groups)).sum(3)
    return dq, dk, dv


@pytest.fixture
def flash_attn(monkeypatch):
    """A stand-in for flash-attn 2.7 and 2.8, with their signatures."""
    seen = []
    module = ModuleType("flash_attn.flash_attn_interface")

    def forward(
        q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
        alibi_slopes, return_softmax,
    ):  # fmt: skip
        assert (dropout_p, alibi_slopes, return_softmax) == (0.0, None, False)
        seen.append((causal, window_size_left, window_size_right))
        out, lse = dense_forward(
            q, k, v, softmax_scale, causal, window_size_left, window_size_right, softcap
        )
        return out, lse, torch.empty(0), torch.empty(2)

    def backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        assert (dropout_p, alibi_slopes, rng_state) == (0.0, None, None)
        assert softmax_lse.is_contiguous()
        assert deterministic
        found = dense_backward(
            dout, q, k, v, out, softmax_lse, softmax_scale, causal, window_size_left,
            window_size_right, softcap,
        )  # fmt: skip
        for target, gradient in zip((dq, dk, dv), found, strict=True):
            target.copy_(gradient)
        return torch.empty(0)

    vars(module).update(_flash_attn_forward=forward, _flash_attn_backward=backward)
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", module)
    monkeypatch.setattr(flash, "_library", lambda problem: cuda.FlashAttn())
    return seen


@pytest.fixture
def torch_flash(monkeypatch):
    """CPU kernels for torch's own operators, so that torch checks the arguments by its schema."""
    seen = []

    def forward(
        q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, debug, *, scale,
        window_size_left, window_size_right, **_,
    ):  # fmt: skip
        assert (cu_q, cu_k, max_q, max_k) == (None, None, q.shape[1], k.shape[1])
        assert (dropout, debug) == (0.0, False)
        seen.append((causal, window_size_left, window_size_right))
        out, lse = dense_forward(q, k, v, scale, causal, window_size_left, window_size_right)
        return out, lse, torch.empty(2), torch.empty(0), torch.empty(0)

    def backward(
        dout, q, k, v, out, lse, cu_q, cu_k, max_q, max_k, dropout, causal, rng_state, unused, *,
        scale, window_size_left, window_size_right,
    ):  # fmt: skip
        assert (cu_q, cu_k, max_q, max_k) == (None, None, q.shape[1], k.shape[1])
        assert (dropout, rng_state.shape) == (0.0, (2,))
        assert lse.is_contiguous()
        return dense_backward(
            dout, q, k, v, out, lse, scale, causal, window_size_left, window_size_right
        )

    monkeypatch.setattr(flash, "_library", lambda problem: cuda.TorchFlash())
    with torch.library._scoped_library("aten", "IMPL") as kernels:
        kernels.impl("_flash_attention_forward", forward, "CPU")
        kernels.impl("_flash_attention_backward", backward, "CPU")
        yield seen


@pytest.mark.parametrize("library", ["flash_attn", "torch_flash"])
def test_libraries_of_cuda_devices(request, oracle, inputs, rule, library):
    seen = request.getfixturevalue(library)
    tensors = inputs(queries=21, keys=27).make(grad=True)
    got = results(tensors, distance=rule[0], backend="flash", deterministic=True)
    output, _ = oracle(*tensors, rotary=ROTARY, relative=rule[1])
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    expected = output, *torch.autograd.grad((output * weight).sum(), tensors)
    assert_alike(got, expected)
    assert seen


@pytest.mark.parametrize("library", ["flash_attn", "torch_flash"])
def test_rerope_is_a_sliding_window_and_a_causal_attention(request, inputs, library):
    seen = request.getfixturevalue(library)
    rotary_attention(*inputs().make(), rotary=ROTARY, distance=ReRoPE(5), backend="flash")
    assert seen == [(True, 4, 0), (True, -1, 0)]


def test_flash_attn_takes_softcaps_and_sinks(oracle, inputs, flash_attn):
    tensors = inputs().make(grad=True)
    sinks = torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64)
    options = {"softcap": 2.0, "sinks": sinks}
    got = results(tensors, distance=ReRoPE(5), backend="flash", deterministic=True, **options)
    relative = lambda i, j: (i - j).clamp(max=5)  # noqa: E731
    output, _ = oracle(*tensors, rotary=ROTARY, relative=relative, **options)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    assert_alike(got, (output, *torch.autograd.grad((output * weight).sum(), tensors)))


def problem_of(monkeypatch, tensors, **options):
    """The problem that reaches the operator."""
    seen = []
    monkeypatch.setattr(flash, "unsupported", lambda problem: seen.append(problem) or "refused")
    with pytest.raises(ValueError, match="refused"):
        rotary_attention(*tensors, rotary=ROTARY, distance=ReRoPE(5), backend="flash", **options)
    monkeypatch.undo()
    return seen[0]


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ({"dtype": torch.float32}, {}, "bfloat16 or float16, got torch.float32"),
        ({"head_dim": 12}, {}, "up to 256 in steps of 8, got 12"),
        ({}, {"softcap": 2.0}, "install flash-attn"),
        ({}, {"deterministic": True}, "use_deterministic_algorithms"),
        ({}, {"deterministic": False}, None),
    ],
)
def test_what_cuda_libraries_refuse(monkeypatch, inputs, shape, options, message):
    tensors = inputs(**{"dtype": torch.bfloat16, **shape}).make()
    reason = cuda.TorchFlash().unsupported(problem_of(monkeypatch, tensors, **options))
    if message is None:
        assert reason is None
    else:
        assert message in reason


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


def test_self_extend_in_bfloat16_errs_no_more_than_the_reference(inputs):
    exact = inputs(queries=200, keys=200).make()
    half = [x.bfloat16() for x in exact]
    options = {"rotary": ROTARY, "distance": SelfExtend(group=4, window=30)}
    wanted = rotary_attention(*(x.double() for x in half), backend="reference", **options)
    errors = [
        (rotary_attention(*half, backend=backend, **options) - wanted).abs().max()
        for backend in ("flash", "reference")
    ]
    assert errors[0] <= 1.1 * errors[1]
