"""Saving a converted model, and loading it into one that is not."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ropewalk.blocks.monarch import MonarchLinear
from ropewalk.blocks.monarch.conversion import load_monarch_state_dict, monarchize


def test_a_file_has_all_that_is_needed(make_model, inputs, tmp_path) -> None:
    model = make_model()
    model[0].mlp["up"].weight.requires_grad_(False)
    monarchize(model, match="*.mlp.*", nblocks="auto", max_relative_error=0.6)
    assert any(isinstance(module, MonarchLinear) for module in model.modules())
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other = make_model()
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    load_monarch_state_dict(other, load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(inputs), model(inputs))
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    # Into one that is converted already, as any state dict.
    load_monarch_state_dict(other, model.state_dict())
    assert torch.equal(other(inputs), model(inputs))


def test_factors_that_fit_no_layer_are_refused_and_nothing_is_changed(make_model) -> None:
    model = make_model()
    monarchize(model, match="*.mlp.*", nblocks=2, rank=1)
    state = model.state_dict()
    cases = [
        (nn.Sequential(nn.Linear(24, 40)), state, "0.mlp.up: expected a dense layer.*nothing"),
        (make_model(), {**state, "0.norm.left": state["0.mlp.up.left"], "0.norm.right":
            state["0.mlp.up.right"]}, "LayerNorm"),
        (make_model(), {**state, "0.mlp.up.right": torch.zeros(2, 2, 13)}, "24 to 40 features"),
        (make_model(), {**state, "0.mlp.up.right": torch.zeros(2, 24)}, "24 to 40 features"),
    ]  # fmt: skip
    for other, given, message in cases:
        kinds = [type(module) for module in other.modules()]
        with pytest.raises(ValueError, match=message):
            load_monarch_state_dict(other, given)
        assert [type(module) for module in other.modules()] == kinds


def test_strict_is_as_ever(make_model) -> None:
    model = make_model()
    monarchize(model, match="0.mlp.*", nblocks=2, rank=1)
    state = model.state_dict()
    del state["2.weight"]
    with pytest.raises(RuntimeError, match=r"2\.weight"):
        load_monarch_state_dict(make_model(), state)
    found = load_monarch_state_dict(make_model(), state, strict=False)
    assert found.missing_keys == ["2.weight"]
