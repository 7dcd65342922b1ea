"""`tie` and `untie` inside autocast, inference mode and `no_grad`: as outside of them."""

import copy

import pytest
import torch

from ropewalk.llm import tie, untie

MODES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
}


@pytest.mark.parametrize("output", ["identity", "swap", "orthogonal"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "cohere"])
@pytest.mark.parametrize("mode", MODES)
def test_the_mode_of_the_moment_does_not_matter(make_model, tokens, mode, name, output):
    model = make_model(name, tie_word_embeddings=False).train()
    other = copy.deepcopy(model)
    state = torch.get_rng_state()
    tie(other, output=output, source="head", fused_loss=True)
    torch.set_rng_state(state)
    with MODES[mode]():
        tie(model, output=output, source="head", fused_loss=True)
    for step in range(2):
        losses = [m(tokens, labels=tokens).loss for m in (model, other)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
        for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, expected.grad)
        if step == 0:
            with MODES[mode]():
                untie(model)
            untie(other)
