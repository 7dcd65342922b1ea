"""Saving a converted model, and loading it into one that is not."""

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
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


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("change", ["missing", "unexpected", "size", "factors"])
def test_a_refused_state_dict_changes_nothing(make_model, change, strict) -> None:
    model = make_model()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    monarchize(model, match="*.mlp.*", nblocks=2, rank=1)
    state = dict(model.state_dict())
    if change == "missing":
        del state["2.weight"]
    elif change == "unexpected":
        state["3.weight"] = torch.zeros(1)
    elif change == "size":
        state["2.weight"] = torch.zeros(7, 25)
    else:
        del state["1.mlp.up.left"]
    other = make_model()
    modules = list(other.modules())
    before = {name: (value, value.clone()) for name, value in other.named_parameters()}
    if change == "size" or strict:
        with pytest.raises(RuntimeError, match="loading state_dict"):
            load_monarch_state_dict(other, state, strict=strict)
        assert list(other.modules()) == modules
        for name, value in other.named_parameters():
            assert value is before[name][0]
            assert torch.equal(value, before[name][1])
    else:  # what does fit is loaded
        load_monarch_state_dict(other, state, strict=False)
        assert torch.equal(other[0].mlp["up"].right, state["0.mlp.up.right"])
        assert torch.equal(other[0].norm.weight, state["0.norm.weight"])


class Tied(nn.Module):
    """Two names of one table, and one layer of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.first = self.second = nn.Linear(6, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight


def test_of_what_is_tied_one_name_is_enough(tmp_path) -> None:
    model = Tied()
    monarchize(model, match="first", nblocks=2, rank=1)
    save_model(model, str(tmp_path / "tied.safetensors"))
    state = load_file(tmp_path / "tied.safetensors")
    assert len(state) < len(model.state_dict())
    for given in (state, {k: v for k, v in model.state_dict().items() if "embed" not in k}):
        other = Tied()
        found = load_monarch_state_dict(other, given)
        assert found.missing_keys == found.unexpected_keys == []
        assert other.first is other.second
        assert other.head.weight is other.embedding.weight
        for name, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor)
    # Neither of the names, or a model that does not tie them: strict as ever.
    apart = Tied()
    apart.head = nn.Linear(6, 9, bias=False)
    without = {k: v for k, v in model.state_dict().items() if k != "head.weight"}
    neither = {k: v for k, v in without.items() if "embed" not in k}
    for other, given in ((apart, without), (Tied(), neither)):
        with pytest.raises(RuntimeError, match=r"Missing key.*head\.weight"):
            load_monarch_state_dict(other, given)
    assert load_monarch_state_dict(Tied(), neither, strict=False).missing_keys == [
        "embedding.weight",
        "head.weight",
    ]


@pytest.mark.parametrize("how", ["save_model", "save_pretrained"])
def test_the_bundled_model_saved_without_its_tied_name(how, tmp_path) -> None:
    from ropewalk.evals.models import open_model

    def load():
        return open_model("default").load(dtype=torch.float32, device=torch.device("cpu"))

    model, other = load(), load()
    monarchize(model, match="model.layers.0.mlp.*", nblocks=4, rank=2, progress=False)
    if how == "save_model":
        save_model(model, str(tmp_path / "model.safetensors"))
    else:
        model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert len(state) < len(model.state_dict())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    load_monarch_state_dict(other, state)
    ids = torch.arange(2, 34)[None]
    with torch.no_grad():
        assert torch.equal(other(input_ids=ids).logits, model(input_ids=ids).logits)
