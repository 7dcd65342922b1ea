"""RotaryAttention with its cache of unrotated keys: steps, padding, reordering, refusals."""

import copy
import pickle

import pytest
import torch

from ropewalk.blocks import attention
from ropewalk.blocks.attention import KeyValueCache, RotaryAttention
from ropewalk.blocks.rotary import (
    DualChunk,
    LeakyReRoPE,
    LogN,
    Plain,
    ReRoPE,
    RotaryEmbedding,
    SelfExtend,
)

RULES = [
    Plain(),
    ReRoPE(window=5),
    LeakyReRoPE(window=4, factor=8.0),
    SelfExtend(group=3, window=7),
    DualChunk(chunk=8, local=3),
]


def layer(**options) -> RotaryAttention:
    torch.manual_seed(0)
    options.setdefault("rotary", RotaryEmbedding(8))
    return RotaryAttention(32, 4, 2, **options)


def stream(batch: int = 2, length: int = 19, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, length, 32, generator=generator).to(dtype)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("prompt", [1, 7])
@torch.no_grad()
def test_prefill_and_steps_equal_one_pass(rule, prompt):
    module = layer(distance=rule, log_n=LogN(4), qk_norm=True, sliding_window=15)
    x, cache = stream(length=80), KeyValueCache()
    parts = [module(x[:, :prompt], cache=cache)]
    parts += [module(x[:, i : i + 1], cache=cache) for i in range(prompt, 80)]
    assert cache.length == 80
    torch.testing.assert_close(torch.cat(parts, 1), module(x), rtol=0, atol=1e-5)


@torch.no_grad()
def test_left_padded_rows_equal_unpadded_ones():
    module = layer(distance=ReRoPE(5))
    x = stream()
    padding = torch.tensor([0, 6])
    positions = torch.arange(19) - padding[:, None]
    mask = (torch.arange(19) >= padding[:, None])[:, None, None]
    cache = KeyValueCache()
    whole = module(x, positions=positions, attention_mask=mask)
    alone = module(x[1:, 6:])
    torch.testing.assert_close(whole[1:, 6:], alone, rtol=0, atol=1e-6)
    # Row by row the cache goes on from the last position that it was given.
    first = module(
        x[:, :15], positions=positions[:, :15], attention_mask=mask[..., :15], cache=cache
    )
    rest = module(x[:, 15:], attention_mask=mask, cache=cache)
    torch.testing.assert_close(torch.cat((first, rest), 1)[1:, 6:], alone, rtol=0, atol=1e-6)


@torch.no_grad()
def test_cache_reorders_rows_and_forgets():
    module = layer(distance=ReRoPE(5))
    x, cache = stream(), KeyValueCache()
    module(x[:, :10], cache=cache)
    cache.reorder(torch.tensor([1, 1]))
    got = module(x[:, 10:], cache=cache)
    swapped = torch.cat((x[[1, 1], :10], x[:, 10:]), 1)
    torch.testing.assert_close(got, module(swapped)[:, 10:], rtol=0, atol=1e-6)
    cache.truncate(10)
    torch.testing.assert_close(module(x[:, 10:], cache=cache), got, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="from 0 to 19, got 20"):
        cache.truncate(20)
    assert repr(cache) == "KeyValueCache(length=19)"
    empty = KeyValueCache()
    empty.reorder(torch.tensor([0]))
    assert empty.length == 0


@pytest.mark.parametrize("thing", [{}, KeyValueCache])
def test_only_a_cache_is_a_cache(thing):
    with pytest.raises(TypeError, match="cache must be a KeyValueCache, got"):
        layer()(stream(), cache=thing)


def test_an_empty_cache_is_one():
    assert KeyValueCache()
    assert len(KeyValueCache()) == 0


def test_cache_refuses_gradients_and_other_batches():
    module, cache = layer(), KeyValueCache()
    with pytest.raises(ValueError, match="for inference"):
        module(stream(), cache=cache)
    with torch.no_grad():
        module(stream(), cache=cache)
        with pytest.raises(ValueError, match="batch and heads"):
            module(stream(batch=3), cache=cache)


@torch.no_grad()
def test_default_positions_reach_attention_by_index(monkeypatch):
    """Fast paths need no look at the positions then; a given position ends that for good."""
    seen = []
    attend = attention.rotary_attention

    def spy(*tensors, query_positions, key_positions, **options):
        seen.append((query_positions is None, key_positions is None))
        return attend(
            *tensors, query_positions=query_positions, key_positions=key_positions, **options
        )

    monkeypatch.setattr(attention, "rotary_attention", spy)
    module, x, cache = layer(distance=ReRoPE(5)), stream(), KeyValueCache()
    module(x)
    module(x[:, :6], cache=cache)
    module(x[:, 6:7], cache=cache)
    assert cache.by_index
    assert seen == [(True, True)] * 3
    module(x[:, 7:9], positions=torch.tensor([9, 11]), cache=cache)
    module(x[:, 9:10], cache=cache)
    assert not cache.by_index
    assert seen[3:] == [(False, False)] * 2
    assert cache.next_positions(1, x.device).item() == 13


@torch.no_grad()
def test_a_call_that_fails_leaves_the_cache_as_it_was():
    module, x, cache = layer(distance=ReRoPE(5)), stream(), KeyValueCache()
    module(x[:, :6], cache=cache)
    with pytest.raises(ValueError, match="attention_mask must have shape"):
        module(x[:, 6:9], positions=torch.arange(3), attention_mask=x[None], cache=cache)
    assert (cache.length, cache.by_index) == (6, True)
    rest = module(x[:, 6:], cache=cache)
    torch.testing.assert_close(rest, module(x)[:, 6:], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_first_call_that_fails_binds_the_cache_to_nothing():
    module, cache = layer(distance=ReRoPE(5)), KeyValueCache()
    with pytest.raises(ValueError, match="attention_mask must have shape"):
        module(stream(), attention_mask=torch.ones(2, 1, 1, 3, dtype=torch.bool), cache=cache)
    one = stream(batch=1)
    torch.testing.assert_close(module(one, cache=cache), module(one))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_small_integers_go_on_beyond_what_they_hold(dtype):
    module, x = layer(distance=ReRoPE(5), log_n=LogN(4)), stream(length=40)
    first = 127 - 30 if dtype == torch.int8 else 255 - 30
    found = []
    for kind in (dtype, torch.int64):
        cache = KeyValueCache()
        module(x[:, :30], positions=torch.arange(first, first + 30).to(kind), cache=cache)
        found.append(module(x[:, 30:], cache=cache))
    assert torch.equal(*found)


@torch.no_grad()
def test_integers_may_turn_into_fractions():
    module, x, cache = layer(distance=ReRoPE(5)), stream(), KeyValueCache()
    module(x[:, :17], cache=cache)
    got = module(x[:, 17:], positions=torch.tensor([17.5, 18.7]), cache=cache)
    at = torch.cat((torch.arange(17.0), torch.tensor([17.5, 18.7])))
    torch.testing.assert_close(got, module(x, positions=at)[:, 17:], rtol=0, atol=1e-6)


def test_a_cache_can_be_stored():
    with torch.no_grad():
        module, x, cache = layer(), stream(), KeyValueCache()
        module(x[:, :9], cache=cache)
        twin = pickle.loads(pickle.dumps(cache))
        assert torch.equal(module(x[:, 9:], cache=twin), module(x[:, 9:], cache=cache))


@torch.no_grad()
def test_a_cache_of_another_layer_is_refused():
    first, second, cache = layer(), layer(), KeyValueCache()
    first(stream(), cache=cache)
    with pytest.raises(ValueError, match="one for each layer"):
        second(stream(), cache=cache)
    first(stream(), cache=copy.deepcopy(cache))
    cache.truncate(0)
    second(stream(), cache=cache)
    assert cache.length == 19
