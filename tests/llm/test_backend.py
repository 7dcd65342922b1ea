"""Who computes a plugged model's attention: the backend that `plug` was given, in every layer."""

import copy

import pytest
import torch

from ropewalk.blocks.rotary import ReRoPE
from ropewalk.kernels.rotary_attention import rotary_attention
from ropewalk.llm import attention_interface, plug


@torch.no_grad()
@pytest.mark.parametrize(
    "rules", [{"distance": ReRoPE(window=4)}, {"log_n_length": 4}], ids=["distance", "log-n"]
)
@pytest.mark.parametrize("copied", [False, True])
def test_the_backend_that_was_asked_for_computes_every_layer(
    make_model, tokens, monkeypatch, rules, copied
):
    asked = []

    def spy(*inputs, backend, **options):
        asked.append(backend)
        return rotary_attention(*inputs, backend=backend, **options)

    monkeypatch.setattr(attention_interface, "rotary_attention", spy)
    model = make_model("llama")
    layers = model.config.num_hidden_layers
    with plug(model, **rules) as handle:
        expected = model(tokens).logits
    assert asked == ["auto"] * layers
    assert "backend" not in repr(handle)
    asked.clear()
    with plug(model, **rules, backend="reference") as handle:
        assert "backend='reference'" in repr(handle)
        found = (copy.deepcopy(model) if copied else model)(tokens).logits
    assert asked == ["reference"] * layers
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_triton_is_refused_where_there_is_no_gpu(make_model, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = make_model()
    forward = model.forward
    with pytest.raises(ValueError, match="backend 'triton' cannot run: expected tensors on a CUDA"):
        plug(model, distance=ReRoPE(window=4), backend="triton")
    assert model.forward == forward
    assert model.config._attn_implementation != "ropewalk"


def test_a_backend_that_cannot_take_part_says_so_when_the_model_runs(
    make_model, tokens, monkeypatch
):
    monkeypatch.setattr(
        "ropewalk.kernels.rotary_attention.flash.unsupported", lambda problem: "it is closed"
    )
    with (
        plug(make_model(), distance=ReRoPE(window=4), backend="flash") as handle,
        pytest.raises(ValueError, match="backend 'flash' cannot run: it is closed"),
    ):
        handle.model(tokens)
