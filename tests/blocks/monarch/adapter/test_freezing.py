"""What learns beside adapters, and what learns again when they are gone."""

import copy

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch.adapter import (
    activate_adapters,
    adapter_state_dict,
    add_adapters,
    attach_adapter,
    mark_only_adapters_trainable,
    merge_adapters,
    remove_adapters,
)


def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(10, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 12), nn.Linear(12, 8)
    )
    model[3].bias.requires_grad_(False)
    return model


def learning(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("take_out", [remove_adapters, merge_adapters])
def test_only_adapters_learn_until_they_are_gone(take_out):
    model = make()
    before = learning(model)
    assert {"0.weight", "1.bias"} < before
    add_adapters(model, match=["2", "3"], nblocks=2)
    assert learning(model) == {
        f"{layer}.adapters.default.{factor}" for layer in "23" for factor in ("right", "left")
    }
    add_adapters(model, match=["3", "4"], nblocks=2, name="b")
    assert all(".adapters." in name for name in learning(model))
    assert len(learning(model)) == 8
    other = copy.deepcopy(model)
    for each in (model, other):
        take_out(each)
        assert learning(each) == before


def test_the_rest_can_be_left_to_learn_and_frozen_later():
    model = make()
    before = learning(model)
    add_adapters(model, match="3", nblocks=2, freeze=False)
    added = {"3.adapters.default.right", "3.adapters.default.left"}
    assert learning(model) == (before - {"3.weight"}) | added
    mark_only_adapters_trainable(model)
    assert learning(model) == added
    remove_adapters(model)
    assert learning(model) == before
    with pytest.raises(TypeError, match="freeze: expected True or False, got 1"):
        add_adapters(model, match="3", nblocks=2, freeze=1)
    assert learning(model) == before


def test_a_compiled_model_is_thawed_too():
    model = make()
    before = learning(model)
    add_adapters(torch.compile(model, backend="eager"), match="*", nblocks=2)
    assert all(".adapters." in name for name in learning(model))
    remove_adapters(model)
    assert learning(model) == before


def test_layers_that_are_plain_again_stay_frozen_beside_the_others():
    model = make()
    before = learning(model)
    add_adapters(model, match="2", nblocks=2, name="a")
    add_adapters(model, match="3", nblocks=2, name="b")
    assert remove_adapters(model, name="a") == ["2"]
    assert learning(model) == {"3.adapters.b.right", "3.adapters.b.left"}
    remove_adapters(model, name="b")
    assert learning(model) == before


def test_an_attached_adapter_freezes_as_one_that_is_made():
    source = make()
    add_adapters(source, match="3", nblocks=2)
    state = adapter_state_dict(source)
    for freeze in (True, False):
        model = make()
        attach_adapter(model, state, freeze=freeze)
        assert ("0.weight" in learning(model)) is not freeze
        assert "3.adapters.default.left" in learning(model)


def tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("names", ["aa", "ab", "ba"])
def test_a_tied_weight_is_as_trainable_as_it_was(freeze, names):
    model = tied()
    for layer, name in zip("01", names, strict=True):
        add_adapters(model, match=layer, nblocks=2, name=name, freeze=freeze)
    assert not model[0].base_layer.weight.requires_grad
    for index, name in enumerate(sorted(set(names))):
        if index:  # one of the two is plain, and the other one still wrapped
            assert (
                not model[0]
                .get_parameter("weight" if isinstance(model[0], nn.Linear) else "base_layer.weight")
                .requires_grad
            )
        remove_adapters(model, name=name)
    assert model[0].weight is model[1].weight
    assert all(p.requires_grad for p in model.parameters())


def test_a_tied_weight_is_as_it_was_after_a_refusal():
    model = tied()
    with pytest.raises(ValueError, match="2: nblocks: expected"):
        add_adapters(model, match="*", nblocks=(1, 4))
    assert all(p.requires_grad for p in model.parameters())
    assert {type(layer) for layer in model} == {nn.Linear}


def test_what_somebody_thaws_meanwhile_learns():
    model = make()
    add_adapters(model, match="3", nblocks=2)
    model[0].weight.requires_grad_(True)
    activate_adapters(model, "default")
    assert "0.weight" in learning(model)
    mark_only_adapters_trainable(model)
    assert "0.weight" not in learning(model)


def test_a_part_is_frozen_alone():
    model = nn.ModuleList([make(), make()])
    before = learning(model)
    add_adapters(model[0], match="2", nblocks=2, name="a")
    add_adapters(model[0], match="3", nblocks=2, name="b")
    assert {name for name in before if name.startswith("1.")} < learning(model)
    remove_adapters(model, name="a")
    assert learning(model[0]) == {"3.adapters.b.right", "3.adapters.b.left"}
    assert learning(model[1]) == learning(make())
    remove_adapters(model)
    assert learning(model) == before
