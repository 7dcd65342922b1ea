"""Attention as a recurrence is attention, however the keys are read."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from ropewalk.blocks.recurrent.attention_rnn import (
    AttentionState,
    combine,
    prefix_attention,
    read,
    recurrent_attention,
)


def sample(query=7, key=7, batch=(2, 3), size=5, values=4, dtype=torch.float32):
    torch.manual_seed(query * 100 + key)
    return (
        torch.randn(*batch, query, size).to(dtype),
        torch.randn(*batch, key, size).to(dtype),
        torch.randn(*batch, key, values).to(dtype),
    )


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 7, 8])
def test_it_is_softmax_attention(length, causal, chunk_size):
    q, k, v = sample(length, length)
    outputs, _ = recurrent_attention(q, k, v, causal=causal, chunk_size=chunk_size)
    exact = scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(outputs, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_with_other_numbers_of_queries_another_scale_and_no_batch(chunk_size):
    q, k, v = sample(3, 10, batch=())
    outputs, _ = recurrent_attention(q, k, v, scale=0.3, chunk_size=chunk_size)
    exact = scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(outputs, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_large_scores_are_safe(sign):
    q, k, v = sample(6, 6, dtype=torch.float64)
    k = k.abs() + 0.1  # scores of one sign, in the thousands
    q = sign * q.abs() * 3000
    exact = scaled_dot_product_attention(q, k, v)
    for chunk_size in (1, 4):
        outputs, state = recurrent_attention(q.float(), k.float(), v.float(), chunk_size=chunk_size)
        assert all(x.isfinite().all() for x in state)
        torch.testing.assert_close(outputs.double(), exact, rtol=0, atol=2e-3)
    outputs, _ = prefix_attention(q[..., 0, :], k, v)
    torch.testing.assert_close(outputs[..., -1, :], exact[..., 0, :])


@pytest.mark.parametrize("causal", [False, True])
def test_it_resumes(causal):
    q, k, v = sample(9, 9)
    whole, state = recurrent_attention(q, k, v, causal=causal)
    _, first = recurrent_attention(q, k[..., :4, :], v[..., :4, :], causal=causal, chunk_size=2)
    resumed, last = recurrent_attention(
        q, k[..., 4:, :], v[..., 4:, :], causal=causal, state=first, keys_before=4, chunk_size=3
    )
    torch.testing.assert_close(resumed, whole)
    torch.testing.assert_close(last, state)


def test_a_query_that_comes_before_every_key_reads_nothing():
    q, k, v = sample(3, 2)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    outputs, state = recurrent_attention(q, k, v, causal=True, keys_before=2)
    assert outputs[..., :2, :].eq(0).all()
    assert state.maximum[..., :2].eq(-math.inf).all()
    torch.testing.assert_close(outputs[..., 2, :], v[..., 0, :])
    for gradient in torch.autograd.grad(outputs.square().sum(), leaves):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_no_keys(dtype):
    q, k, v = sample(3, 0, dtype=dtype)
    outputs, state = recurrent_attention(q, k, v)
    assert outputs.dtype == dtype
    assert outputs.eq(0).all()
    outputs, last = prefix_attention(q[..., 0, :], k, v)
    assert outputs.shape == v.shape
    torch.testing.assert_close([x[..., 0] for x in state[::2]], list(last[::2]))


def test_states_combine_in_any_order():
    torch.manual_seed(0)
    scores, values = torch.randn(4, 2, 3, 5) * 20, torch.randn(4, 2, 5, 4)
    scores[1] = -math.inf  # nothing read
    states = [read(s, v) for s, v in zip(scores, values, strict=True)]
    whole = read(torch.cat(list(scores), -1), torch.cat(list(values), -2))
    for a, b, c, d in itertools.permutations(states):
        torch.testing.assert_close(combine(combine(a, b), combine(c, d)), whole)
        torch.testing.assert_close(combine(a, combine(combine(b, c), d)), whole)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 13])
def test_a_prefix_is_attention_to_what_came(length):
    q, k, v = sample(1, length)
    query = q[..., 0, :]
    outputs, last = prefix_attention(query, k, v)
    for end in range(1, length + 1):
        exact = scaled_dot_product_attention(q, k[..., :end, :], v[..., :end, :])
        torch.testing.assert_close(outputs[..., end - 1, :], exact[..., 0, :], rtol=0, atol=1e-6)
    cut = length // 2
    _, state = prefix_attention(query, k[..., :cut, :], v[..., :cut, :])
    resumed, again = prefix_attention(query, k[..., cut:, :], v[..., cut:, :], state=state)
    torch.testing.assert_close(resumed, outputs[..., cut:, :])
    torch.testing.assert_close(again, last)


def test_gradients():
    leaves = [x.requires_grad_() for x in sample(3, 4, batch=(2,), dtype=torch.float64)]
    for chunk_size in (1, 3):

        def causal(q, k, v, chunk_size=chunk_size):
            return recurrent_attention(q, k, v, causal=True, chunk_size=chunk_size)[0]

        assert torch.autograd.gradcheck(causal, leaves)

    def resumed(q, k, v):
        _, state = prefix_attention(q[:, 0], k[:, :2], v[:, :2])
        return prefix_attention(q[:, 0], k[:, 2:], v[:, 2:], state=state)[0]

    assert torch.autograd.gradcheck(resumed, leaves)


def test_half_precision_is_rounded_once():
    q, k, v = sample(6, 9, dtype=torch.bfloat16)
    outputs, state = recurrent_attention(q, k, v, chunk_size=2)
    assert {x.dtype for x in state} == {torch.float32}
    exact = scaled_dot_product_attention(q.float(), k.float(), v.float())
    torch.testing.assert_close(outputs, exact.bfloat16(), rtol=2**-7, atol=1e-6)


def test_refusals():
    q, k, v = sample()
    for queries, keys, values in [
        (q[0], k, v),
        (q[..., :-1], k, v),
        (q, k[..., :-1, :], v),
        (q, k, v[..., 0]),
    ]:
        with pytest.raises(ValueError, match=r"expected queries \(\*batch"):
            recurrent_attention(queries, keys, values)
        with pytest.raises(ValueError, match=r"expected queries \(\*batch"):
            prefix_attention(queries[..., 0, :], keys, values)
    with pytest.raises(ValueError, match="chunk_size ≥ 1"):
        recurrent_attention(q, k, v, chunk_size=0)
    with pytest.raises(ValueError, match="keys_before ≥ 0"):
        recurrent_attention(q, k, v, keys_before=-1)
    state = read(torch.zeros(2, 3, 6, 7), v)
    with pytest.raises(ValueError, match="state: expected maximum"):
        recurrent_attention(q, k, v, state=state)
    with pytest.raises(ValueError, match="state: expected maximum"):
        prefix_attention(q[..., 0, :], k, v, state=AttentionState(*state))
