"""Identities that hold whatever the numbers are."""

import pytest
import torch
import torch.nn.functional as F

from ropewalk.blocks.rotary import (
    DualChunk,
    DynamicNTK,
    LeakyReRoPE,
    Plain,
    ReRoPE,
    RotaryEmbedding,
    SelfExtend,
)
from ropewalk.kernels.rotary_attention import rotary_attention

ROTARY = RotaryEmbedding(8)
LENGTH = 19


def attend(tensors, distance, **options):
    return rotary_attention(*tensors, rotary=ROTARY, distance=distance, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [True, False])
def test_plain_is_torch_attention_of_rotated_tensors(inputs, dtype, causal):
    q, k, v = inputs(dtype=dtype).make()
    positions = torch.arange(LENGTH)
    expected = F.scaled_dot_product_attention(
        ROTARY.rotate(q, positions),
        ROTARY.rotate(k, positions),
        v,
        is_causal=causal,
        enable_gqa=True,
    )
    for backend in ("auto", "reference"):
        got = rotary_attention(q, k, v, rotary=ROTARY, causal=causal, backend=backend)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "rule",
    [
        ReRoPE(LENGTH),
        LeakyReRoPE(LENGTH, 16.0),
        LeakyReRoPE(5, 1.0),
        SelfExtend(group=4, window=LENGTH),
        SelfExtend(group=1, window=5),
        DualChunk(chunk=LENGTH + 3, local=2),
    ],
    ids=str,
)
def test_rules_that_are_plain(inputs, rule):
    tensors = inputs().make()
    torch.testing.assert_close(attend(tensors, rule), attend(tensors, Plain()), rtol=0, atol=1e-11)


def test_leaky_with_an_infinite_factor_is_rerope(inputs):
    tensors = inputs().make()
    far = attend(tensors, LeakyReRoPE(5, 1e12))
    torch.testing.assert_close(far, attend(tensors, ReRoPE(5)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prefill_equals_decoding_step_by_step(inputs, rule, step, dtype):
    q, k, v = inputs(dtype=dtype).make()
    whole = attend((q, k, v), rule[0])
    steps = [
        attend((q[:, :, i : i + step], k[:, :, : i + step], v[:, :, : i + step]), rule[0])
        for i in range(0, LENGTH - LENGTH % step, step)
    ]
    together = torch.cat(steps, 2)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(together, whole[:, :, : together.shape[2]], rtol=0, atol=tolerance)


def test_grouped_queries_equal_repeated_keys(inputs, rule):
    q, k, v = inputs().make()
    repeated = (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    torch.testing.assert_close(
        attend((q, k, v), rule[0]), attend(repeated, rule[0]), rtol=0, atol=1e-12
    )


def test_halves_of_the_keys_merge_by_logsumexp(inputs, rule):
    q, k, v = inputs().make()
    at = torch.arange(LENGTH)
    parts = []
    for half in (slice(0, 8), slice(8, LENGTH)):
        parts.append(
            attend(
                (q, k[:, :, half], v[:, :, half]), rule[0],
                query_positions=at, key_positions=at[half], return_logsumexp=True,
            )
        )  # fmt: skip
    (a, lse_a), (b, lse_b) = parts
    lse = torch.logaddexp(lse_a, lse_b)
    merged = a * (lse_a - lse).exp()[..., None] + b * (lse_b - lse).exp()[..., None]
    whole, whole_lse = attend((q, k, v), rule[0], return_logsumexp=True)
    torch.testing.assert_close(merged, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, whole_lse, rtol=0, atol=1e-12)


def test_shifting_all_positions_changes_nothing_under_shift_invariant_rules(inputs):
    tensors = inputs().make()
    at = torch.arange(LENGTH)
    for rule in (Plain(), ReRoPE(5), LeakyReRoPE(5, 4.0)):
        moved = attend(tensors, rule, query_positions=at + 37, key_positions=at + 37)
        torch.testing.assert_close(moved, attend(tensors, rule), rtol=0, atol=1e-10)


def test_left_padding_changes_nothing(inputs, rule):
    q, k, v = inputs(batch=1).make()
    padded = [F.pad(x, (0, 0, 6, 0), value=9.0) for x in (q, k, v)]
    at = (torch.arange(LENGTH + 6) - 6).clamp(min=0)[None]
    mask = (torch.arange(LENGTH + 6) >= 6)[None, None, None]
    got = attend(padded, rule[0], query_positions=at, key_positions=at, attention_mask=mask)
    torch.testing.assert_close(got[:, :, 6:], attend((q, k, v), rule[0]), rtol=0, atol=1e-12)


def test_unfilled_cache_equals_the_filled_part(inputs, rule):
    q, k, v = inputs(queries=2).make()
    expected = attend((q, k[:, :, :13], v[:, :, :13]), rule[0])
    got = attend((q, k, v), rule[0], key_lengths=torch.tensor([13, 13]))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_frequencies_follow_the_context_length(inputs):
    rotary = RotaryEmbedding(8, frequency=DynamicNTK(factor=2.0, original_length=8))
    q, k, v = inputs().make()
    whole = rotary_attention(q, k, v, rotary=rotary)
    last = rotary_attention(q[:, :, -1:], k, v, rotary=rotary)
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=0, atol=1e-12)
    at = torch.arange(LENGTH)
    by_position = rotary_attention(
        q, k, v, rotary=rotary, query_positions=at, key_positions=at, backend="reference"
    )
    torch.testing.assert_close(by_position, whole, rtol=0, atol=1e-6)
    explicit = rotary_attention(q, k, v, rotary=rotary, length=LENGTH + 30)
    assert (explicit - whole).abs().max() > 1e-4
