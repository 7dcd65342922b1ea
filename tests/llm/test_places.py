"""Plain forward passes say no positions, so that kernels compute them; all others still do."""

import gc
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from ropewalk.blocks.rotary import DualChunk, LeakyReRoPE, ReRoPE, SelfExtend
from ropewalk.kernels.rotary_attention import attention, op
from ropewalk.llm import places, plug
from ropewalk.llm.mask_plan import make_plan

NAMES = [argument.split()[-1] for argument in op.TENSORS.split(", ")]
RULE = {"distance": ReRoPE(window=4)}
RULES: list[dict[str, Any]] = [
    {"distance": LeakyReRoPE(window=4, factor=3.0), "log_n_length": 8},
    {"distance": SelfExtend(group=3, window=5)},
    {"distance": DualChunk(chunk=8, local=2)},
]


class Call(NamedTuple):
    """What the operator was told."""

    by_index: bool
    key_lengths: list[int] | None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    seen: list[Call] = []

    def spy(*arguments: Any) -> Any:
        told = dict(zip(NAMES, arguments, strict=False))
        assert (told["query_positions"] is None) == (told["key_positions"] is None)
        lengths = told["key_lengths"]
        filled = None if lengths is None else lengths.tolist()
        seen.append(Call(told["query_positions"] is None, filled))
        return op.rotary_attention_op(*arguments)

    monkeypatch.setattr(attention, "rotary_attention_op", spy)
    return seen


@torch.no_grad()
def steps(model: Any, tokens: Tensor, sizes: list[int], cache: Any = None, **inputs: Any) -> Tensor:
    """Logits of tokens that enter piece by piece."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    outputs, start = [], 0
    for size in sizes:
        stop = start + size
        told = {name: x[:, start:stop] for name, x in inputs.items()}
        mask = told.pop("attention_mask", None)
        if mask is not None:
            told["attention_mask"] = inputs["attention_mask"][:, :stop]
        outputs.append(model(tokens[:, start:stop], past_key_values=cache, **told).logits)
        start = stop
    return torch.cat(outputs, dim=1)


def test_prefill_in_chunks_and_decoding_say_no_positions(make_model, tokens, calls) -> None:
    model = make_model()
    with plug(model, **RULE):
        steps(model, tokens, [9, 3, 1, 1])
    assert calls == [Call(True, None)] * 4 * model.config.num_hidden_layers


def test_a_static_cache_says_how_much_of_it_is_filled(make_model, tokens, calls) -> None:
    model = make_model()
    with plug(model, **RULE):
        steps(model, tokens, [9, 3, 1], StaticCache(model.config, max_cache_len=24))
    layers = model.config.num_hidden_layers
    assert calls == [Call(True, [filled] * 2) for filled in (9, 12, 13) for _ in range(layers)]


def test_padding_and_other_positions_are_said(make_model, tokens, calls) -> None:
    model = make_model()
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    index = torch.arange(21).expand(2, -1)
    one_row = index + torch.tensor([[0], [5]])
    gaps = index + (index > 12).long()
    with plug(model, **RULE):
        for inputs in (
            {"attention_mask": mask},
            {"position_ids": index + 5},
            {"position_ids": one_row},
            {"position_ids": gaps},
        ):
            calls.clear()
            steps(model, tokens, [9, 5, 1], **inputs)
            late = calls[-model.config.num_hidden_layers :]  # gaps come later than the prefill
            assert not any(call.by_index for call in late), inputs.keys()


def test_a_sliding_cache_without_its_first_tokens_says_where_it_begins(
    make_model, tokens, calls
) -> None:
    model = make_model("gemma3")  # a sliding layer, then a full one; the window is 7
    with plug(model, **RULE):
        steps(model, tokens, [6, 1, 1, 1])
    sliding, full = calls[::2], calls[1::2]
    assert all(call.by_index for call in full)
    assert [call.by_index for call in sliding] == [True, True, False, False]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_logits_are_those_of_positions_that_are_said(
    make_model, tokens, monkeypatch, rules, name, static
) -> None:
    def cache() -> Any:
        if static:
            return StaticCache(model.config, max_cache_len=24)
        return DynamicCache(config=model.config)

    model, sizes = make_model(name), [9, 3, 1, 1, 1]
    with plug(model, **rules):
        silent = steps(model, tokens, sizes, cache())
        monkeypatch.setattr(places, "_filled", lambda *_: None)
        said = steps(model, tokens, sizes, cache())
    torch.testing.assert_close(silent, said, atol=1e-5, rtol=1e-5)


def test_looked_at_once_in_a_forward_pass(make_model, tokens, monkeypatch) -> None:
    model, found = make_model(num_hidden_layers=4), []
    find = places._find
    monkeypatch.setattr(places, "_find", lambda *given: found.append(1) or find(*given))
    with plug(model, **RULE):
        steps(model, tokens, [9, 1, 1])
        assert len(found) == 3
        gc.collect()
        assert len(places._kept) == 0  # what is kept goes with its plan


def test_positions_that_change_in_place_are_seen(make_model, tokens) -> None:
    """The next pass has a plan of its own, though its positions are the same tensor."""
    model, at = make_model(), torch.arange(21)[None]
    with plug(model, **RULE, log_n_length=8), torch.no_grad():
        model(tokens, position_ids=at)
        at += 9
        got = model(tokens, position_ids=at).logits
        expected = model(tokens, position_ids=at.clone()).logits
    torch.testing.assert_close(got, expected)


def test_never_while_compiling(monkeypatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a value was asked for while compiling")

    monkeypatch.setattr(places, "_find", refuse)
    plan, at = make_plan(1, 5, 5), torch.arange(5)[None]
    query = torch.randn(1, 2, 5, 8)

    def traced(at: Tensor) -> Tensor | None:
        return places.places_of(plan, at, query, query).key_positions

    with pytest.raises(AssertionError, match="while compiling"):
        traced(at)
    assert torch.equal(torch.compile(traced, backend="eager", fullgraph=True)(at), at)
