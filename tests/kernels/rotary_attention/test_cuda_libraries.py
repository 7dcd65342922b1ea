"""Attention of CUDA devices under the composition, by stand-ins of the same signature."""

import sys
from types import ModuleType

import pytest
import torch

from ropewalk.blocks.rotary import ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import flash, rotary_attention
from ropewalk.kernels.rotary_attention.flash import cuda

ROTARY = RotaryEmbedding(8)


def results(tensors, **options):
    """Output and gradients."""
    output = rotary_attention(*tensors, **{"rotary": ROTARY, **options})
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    return output, *torch.autograd.grad((output * weight).sum(), tensors)


def assert_alike(got, expected, tolerance=1e-11):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


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
    monkeypatch.setattr(flash.launch, "_library", lambda problem: cuda.FlashAttn())
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

    monkeypatch.setattr(flash.launch, "_library", lambda problem: cuda.TorchFlash())
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
