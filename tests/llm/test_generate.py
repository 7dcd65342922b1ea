"""`generate` under a plug: every search, every cache, left-padded batches."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, set_seed

from ropewalk.blocks.rotary import LeakyReRoPE, ReRoPE
from ropewalk.llm import plug

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beam": {"do_sample": False, "num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 0},
}
CACHES = {"dynamic": None, "static": "static"}
NEW = 9


def generate(model: PreTrainedModel, tokens: torch.Tensor, **options: Any) -> Any:
    set_seed(3)
    return model.generate(
        input_ids=tokens,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
        disable_compile=True,
        **options,
    )


def left_padded(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    return {"tokens": tokens * mask, "attention_mask": mask}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("cache", CACHES)
def test_trivial_rules_generate_what_the_unplugged_model_does(
    architecture, make_model, tokens, search, cache
) -> None:
    # The sliding architectures get a sliding cache from transformers, dynamic or static.
    model = make_model(architecture)
    options = {**left_padded(tokens), **SEARCHES[search]}
    if CACHES[cache]:
        options["cache_implementation"] = CACHES[cache]
    expected = generate(model, **options)
    with plug(model, distance=ReRoPE(window=4096)):
        got = generate(model, **options)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(
        torch.stack(got.logits), torch.stack(expected.logits), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("cache", CACHES)
def test_a_padded_row_generates_what_it_does_alone(architecture, make_model, tokens, cache) -> None:
    if architecture == "phi3-longrope":
        pytest.skip("length-dependent frequencies follow the longest row of the batch")
    model = make_model(architecture)
    inputs = left_padded(tokens)
    options = {"cache_implementation": CACHES[cache]} if CACHES[cache] else {}
    with plug(model, distance=LeakyReRoPE(window=4, factor=8.0), log_n_length=4):
        batch = generate(model, **inputs, do_sample=False, **options)
        alone = generate(model, tokens[:1, 5:], do_sample=False, **options)
    assert torch.equal(batch.sequences[:1, 5:], alone.sequences)
    torch.testing.assert_close(
        torch.stack(batch.logits)[:, :1], torch.stack(alone.logits), atol=1e-5, rtol=1e-5
    )


def test_generation_equals_prefill_of_what_was_generated(architecture, make_model, tokens) -> None:
    if architecture == "phi3-longrope":
        pytest.skip("length-dependent frequencies follow the call's length")
    model = make_model(architecture)
    with plug(model, distance=ReRoPE(window=4)):
        made = generate(model, tokens, do_sample=False)
        with torch.no_grad():
            at_once = model(made.sequences).logits[:, tokens.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.stack(made.logits, dim=1), at_once, atol=1e-5, rtol=1e-5)
