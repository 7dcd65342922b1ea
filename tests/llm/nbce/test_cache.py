"""Cache layers that are written in place, and the batches they are assembled into."""

from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from ropewalk.llm import NBCE
from ropewalk.llm.nbce import cache, rows

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
CPU = torch.device("cpu")


def new_states(count: int, heads: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, heads, count, 4), torch.randn(3, heads, count, 6)


def layers(capacity: int, filled: int = 5) -> tuple[cache.RoomyLayer, DynamicLayer]:
    """A layer of ours and one of transformers with the same states in them."""
    keys, values = (
        torch.full((3, 2, capacity, 4), torch.nan),
        torch.full((3, 2, capacity, 6), torch.nan),
    )
    first = new_states(filled)
    keys[:, :, :filled], values[:, :, :filled] = first
    theirs = DynamicLayer()
    theirs.update(*first)
    return cache.RoomyLayer(keys, values, filled, CPU), theirs


@pytest.mark.parametrize("capacity", [5, 7, 64])
def test_a_layer_holds_what_transformers_own_does(capacity, monkeypatch):
    monkeypatch.setattr(cache, "STEP", 3)
    ours, theirs = layers(capacity)
    for count in (1, 4, 1, 1, 9, 1):
        states = new_states(count)
        for one, other in zip(ours.update(*states), theirs.update(*states), strict=True):
            assert torch.equal(one, other)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_a_layer_with_room_is_not_copied():
    ours, _ = layers(64)
    before, _ = ours.update(*new_states(1))
    keys, _ = ours.update(*new_states(40))
    assert keys.data_ptr() == before.data_ptr()
    grown, _ = ours.update(*new_states(40))
    assert grown.data_ptr() != before.data_ptr()


def test_rows_can_be_dropped_picked_and_cut():
    ours, theirs = layers(8)
    for layer in (ours, theirs):
        layer.crop(-2)
        layer.batch_select_indices(torch.tensor([2, 0]))
        layer.batch_repeat_interleave(2)
        layer.reorder_cache(torch.tensor([3, 1, 0, 2]))
    states = torch.randn(4, 2, 1, 4), torch.randn(4, 2, 1, 6)
    for one, other in zip(ours.update(*states), theirs.update(*states), strict=True):
        assert torch.equal(one, other)


def test_a_cut_layer_writes_over_what_was_cut():
    ours, theirs = layers(8)
    for layer in (ours, theirs):
        layer.crop(-3)
    states = new_states(2)
    assert torch.equal(ours.update(*states)[0], theirs.update(*states)[0])


def test_a_reset_layer_begins_anew():
    ours, _ = layers(8)
    ours.reset()
    assert ours.get_seq_length() == 0
    states = new_states(3)
    for got, given in zip(ours.update(*states), states, strict=True):
        assert torch.equal(got, given)


def test_a_batch_is_padded_on_the_left_only_and_with_zeros(model, tokenizer):
    encoded = NBCE(model, tokenizer).encode(CONTEXTS, prefix="read: ")
    tails = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]]
    batch = rows.assemble(model, encoded, tails, pad=0, room=4)
    whole = rows.rows_of(encoded, tails)
    fed, width = 12, batch["past_key_values"].get_seq_length()
    assert batch["input_ids"].shape == batch["position_ids"].shape == (8, fed)
    assert batch["attention_mask"].shape == (8, width + fed)
    assert width == 7 + 1 + 23 - 1
    for place, row in enumerate(whole):
        mask = batch["attention_mask"][place]
        assert mask.sum() == len(row)
        assert mask.diff().min() >= 0
        assert batch["input_ids"][place, -min(fed, len(row)) :].tolist() == row[-fed:]
        assert batch["position_ids"][place, -1] == len(row) - 1
    for layer in batch["past_key_values"].layers:
        for states in (layer.keys, layer.values):
            padding = batch["attention_mask"][:, None, :width, None] == 0
            assert (states.masked_fill(~padding, 0) == 0).all()
            assert states.isfinite().all()


def test_what_is_assembled_is_what_the_model_would_have_cached(model, tokenizer):
    encoded = NBCE(model, tokenizer).encode(CONTEXTS, prefix="read: ")
    tails = [[5, 6, 7], [8] * 9]
    batch = rows.assemble(model, encoded, tails, pad=0, room=4)
    for place, row in enumerate(rows.rows_of(encoded, tails)):
        count = max(0, len(row) - 9)
        with torch.no_grad():
            cached = model(torch.tensor([row])).past_key_values
        for ours, theirs in zip(batch["past_key_values"].layers, cached.layers, strict=True):
            width = ours.keys.shape[2]
            torch.testing.assert_close(
                ours.keys[place, :, width - count :], theirs.keys[0, :, :count]
            )
            torch.testing.assert_close(
                ours.values[place, :, width - count :], theirs.values[0, :, :count]
            )


def places(encoded: Any) -> set[str]:
    """The kinds of device where the states of contexts are."""
    return {part.device.type for layers in encoded.kept.contexts for s in layers for part in s}


@pytest.mark.gpu
@pytest.mark.parametrize("kept", ["auto", "cpu", "cuda"])
def test_states_kept_elsewhere_give_the_same_answers(make_model, tokenizer, kept, monkeypatch):
    from ropewalk.llm.nbce import asking

    model = make_model().cuda()
    questions = ["who sat?", "how many birds flew?"]
    expected = NBCE(model, tokenizer).ask(questions, CONTEXTS, max_new_tokens=8)
    reader = NBCE(model, tokenizer, cache_device=kept)
    encoded = reader.encode(CONTEXTS)
    assert places(encoded) == ({"cpu"} if kept == "cpu" else {"cuda"})
    for on_host in (False, True):
        generate = asking._generate
        monkeypatch.setattr(
            asking, "_generate", lambda *a, on_host=on_host, run=generate: run(*a[:-1], on_host)
        )
        answers = reader.ask(questions, max_new_tokens=8)
        assert [a.tokens for a in answers] == [a.tokens for a in expected]
        monkeypatch.undo()


@pytest.mark.gpu
def test_what_does_not_fit_on_the_device_is_kept_on_the_host(make_model, tokenizer, monkeypatch):
    from ropewalk.llm.nbce import encode

    model = make_model().cuda()
    monkeypatch.setattr(encode, "free_memory", lambda device: 2**10)
    encoded = NBCE(model, tokenizer).encode(CONTEXTS)
    assert places(encoded) == {"cpu"}
