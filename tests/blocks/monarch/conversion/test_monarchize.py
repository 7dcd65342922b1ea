"""Converting and merging: what changes, what stays, and that it is all or nothing."""

import copy

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch import MonarchLinear, monarch_project
from ropewalk.blocks.monarch.conversion import merge, monarchize


def snapshot(model: nn.Module) -> tuple:
    """Which modules and tensors a model has, and their values."""
    modules = {name: id(module) for name, module in model.named_modules(remove_duplicate=False)}
    tensors = {
        name: (id(tensor), tensor.detach().clone()) for name, tensor in model.named_parameters()
    }
    modes = {name: module.training for name, module in model.named_modules()}
    hooks = {name: len(module._forward_pre_hooks) for name, module in model.named_modules()}
    return modules, tensors, modes, hooks


def assert_untouched(model: nn.Module, before: tuple) -> None:
    modules, tensors, modes, hooks = snapshot(model)
    assert (modules, modes, hooks) == (before[0], before[2], before[3])
    assert tensors.keys() == before[1].keys()
    for name, (identity, value) in tensors.items():
        assert identity == before[1][name][0]
        assert torch.equal(value.nan_to_num(), before[1][name][1].nan_to_num())


def test_each_layer_is_the_projection_of_the_one_that_was_there(make_model, inputs) -> None:
    model = make_model()
    weights = {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    report = monarchize(model, match="*.mlp.*", nblocks=(2, 4), rank=2)
    assert [layer.name for layer in report.layers] == [
        "0.mlp.up", "0.mlp.down", "1.mlp.up", "1.mlp.down",
    ]  # fmt: skip
    for layer in report.layers:
        module = model.get_submodule(layer.name)
        assert isinstance(module, MonarchLinear)
        expected = monarch_project(weights[layer.name], nblocks=(2, 4), rank=2)
        torch.testing.assert_close(module.right, expected.right, check_stride=False)
        torch.testing.assert_close(module.left, expected.left, check_stride=False)
        assert layer.relative_error == module.relative_error
        assert layer.relative_error == pytest.approx(expected.relative_error)
    assert type(model[2]) is nn.Linear
    assert model(inputs).shape == (3, 60, 7)


def test_at_full_rank_the_model_computes_what_it_did(make_model, inputs) -> None:
    model = make_model()
    expected = model(inputs)
    for match, nblocks, rank in (("*.mlp.*", 4, 6), ("2", (3, 1), 7)):
        report = monarchize(model, match=match, nblocks=nblocks, rank=rank)
        assert max(layer.relative_error for layer in report.converted) < 1e-5
    assert all(type(module) is not nn.Linear for module in model.modules())
    torch.testing.assert_close(model(inputs), expected, atol=1e-4, rtol=1e-4)


def test_merged_it_computes_the_same_in_dense_layers(make_model, inputs) -> None:
    model = make_model()
    names = list(model.state_dict())
    monarchize(model, match="*", nblocks=2, rank=2)
    expected = model(inputs)
    report = merge(model)
    torch.testing.assert_close(model(inputs), expected)
    assert list(model.state_dict()) == names
    assert all(type(model.get_submodule(layer.name)) is nn.Linear for layer in report.layers)
    assert report.parameters_before < report.parameters_after == 4 * 24 * 40 + 24 * 7
    again = merge(model)
    assert again.layers == ()
    # What has been lost is lost: converting once more loses nothing.
    once_more = monarchize(model, match="*", nblocks=2, rank=2)
    assert max(layer.relative_error for layer in once_more.layers) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_mode_gradients_bias_and_attributes_stay(make_model, dtype) -> None:
    model = make_model().to(dtype).train()
    up, down = model[0].mlp["up"], model[0].mlp["down"]
    up.eval()
    down.weight.requires_grad_(False)
    up.is_special = "yes"
    biases = up.bias, down.bias
    for convert in (
        lambda: monarchize(model, match="0.mlp.*", nblocks=4, rank=1),
        lambda: merge(model),
    ):
        convert()
        up, down = model[0].mlp["up"], model[0].mlp["down"]
        assert (up.bias, down.bias) == biases
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert (up.training, down.training) == (False, True)
        assert all(p.requires_grad for p in up.parameters())
        assert {n for n, p in down.named_parameters() if p.requires_grad} == {"bias"}
        assert up.is_special == "yes"


def test_hooks_go_along_and_their_handles_still_remove_them(make_model, inputs) -> None:
    model = make_model()
    seen = []
    layer = model[0].mlp["up"]
    handles = [
        layer.register_forward_hook(lambda module, args, output: seen.append(output.shape)),
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append("pre"), with_kwargs=True
        ),
        layer.register_full_backward_hook(lambda module, into, out: seen.append("back")),
    ]
    for convert in (
        lambda: monarchize(model, match="0.mlp.up", nblocks=2, rank=1),
        lambda: merge(model),
    ):
        convert()
        assert model[0].mlp["up"] is not layer
        seen.clear()
        model(inputs).sum().backward()
        assert seen == ["pre", (3, 60, 40), "back"]
    for handle in handles:
        handle.remove()
    seen.clear()
    model(inputs)
    assert seen == []


def test_a_module_of_two_names_is_converted_once_and_stays_shared(make_model, inputs) -> None:
    model = make_model()
    model[1].mlp["up"] = model[0].mlp["up"]
    report = monarchize(model, match="1.mlp.up", nblocks=2, rank=1)
    (row,) = report.layers
    assert row.name == "0.mlp.up"
    assert "1.mlp.up" in row.note
    assert model[0].mlp["up"] is model[1].mlp["up"]
    assert isinstance(model[0].mlp["up"], MonarchLinear)
    merge(model)
    assert model[0].mlp["up"] is model[1].mlp["up"]


def test_the_random_state_is_not_touched(make_model, inputs) -> None:
    model = make_model()
    before = torch.get_rng_state()
    monarchize(model, match="*.mlp.*", nblocks=2, rank=1, calibration=[inputs])
    merge(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_converted_model_can_be_copied_and_trained(make_model, inputs) -> None:
    model = make_model()
    monarchize(model, match="*", nblocks=2, rank=2)
    other = copy.deepcopy(model)
    assert torch.equal(other(inputs), model(inputs))
    optimiser = torch.optim.SGD(other.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = other(inputs).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not torch.equal(other[2].right, model[2].right)


# All or nothing


def test_a_weight_that_is_not_finite_leaves_the_model_as_it_was(make_model) -> None:
    model = make_model()
    with torch.no_grad():
        model[1].mlp["up"].weight[3, 4] = float("nan")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"1\.mlp\.up: weight: expected finite"):
        monarchize(model, match="*.mlp.*", nblocks=2, rank=1)
    assert_untouched(model, before)


@pytest.mark.parametrize("failure", [torch.cuda.OutOfMemoryError("no"), KeyboardInterrupt()])
def test_a_failure_at_the_third_layer_leaves_the_model_as_it_was(
    make_model, monkeypatch, failure
) -> None:
    from ropewalk.blocks.monarch.conversion import convert as module

    calls = []
    original = module._layer

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise failure
        return original(*args)

    monkeypatch.setattr(module, "_layer", failing)
    model = make_model()
    before = snapshot(model)
    with pytest.raises(type(failure)):
        monarchize(model, match="*", nblocks=2, rank=1)
    assert len(calls) == 3
    assert_untouched(model, before)


class Interrupted(dict):
    """A module's children, of which the second assignment is interrupted."""

    armed = True

    def __setitem__(self, name, child):
        if name == "down" and self.armed:
            self.armed = False
            raise KeyboardInterrupt
        super().__setitem__(name, child)


@pytest.mark.parametrize("back", [False, True])
def test_an_interrupt_while_layers_are_put_in_takes_them_out_again(make_model, back) -> None:
    model = make_model()
    if back:
        monarchize(model, match="*", nblocks=2, rank=1)
    mlp = model[1].mlp
    mlp.__dict__["_modules"] = Interrupted(mlp._modules)
    before = snapshot(model)

    def convert():
        return merge(model) if back else monarchize(model, match="*", nblocks=2, rank=1)

    with pytest.raises(KeyboardInterrupt):
        convert()
    assert not mlp._modules.armed
    assert_untouched(model, before)


def test_a_failure_in_the_calibrations_forward_leaves_the_model_as_it_was(
    make_model, inputs
) -> None:
    model = make_model().train()
    model[1].norm.eval()
    before = snapshot(model)
    state = torch.get_rng_state()

    def fail(model):
        model(inputs)
        torch.randn(3)
        raise RuntimeError("broken")

    failing = [(fail, "broken"), ([inputs, inputs[..., :5]], "shape")]
    for calibration, message in failing:
        with pytest.raises(RuntimeError, match=message):
            monarchize(model, match="*", nblocks=2, rank=1, calibration=calibration)
        assert_untouched(model, before)
        assert torch.equal(torch.get_rng_state(), state)


# Refusals


def test_what_cannot_be_meant_is_refused(make_model) -> None:
    model = make_model()
    before = snapshot(model)
    rest = {"match": "*", "nblocks": 2}
    cases = [
        ({"rank": 1, "match": "*.ffn.*"}, r"'\*\.ffn\.\*', which fits none; its layers are"),
        ({"rank": 1, "match": ["*.mlp.*", "*.mpl.*"]}, r"'\*\.mpl\.\*'.*\*\.mlp\.up"),
        ({"rank": 1, "match": "0.mlp"}, "fits none"),  # no layer, but what holds them
        ({"rank": 1, "match": lambda name, module: False}, "false for all"),
        ({"rank": 1, "match": []}, "got none"),
        ({}, "exactly one of rank, .* got none"),
        ({"rank": 1, "target_compression": 2}, "got rank and target_compression"),
        ({"rank": 0}, "rank"),
        ({"rank": 1, "nblocks": 0}, "nblocks"),
        ({"rank": 1, "nblocks": "automatic"}, "nblocks"),
        ({"rank": 1, "nblocks": "auto"}, "needs a number of blocks"),
        ({"target_compression": 0.5}, "target_compression"),
        ({"target_compression": float("inf")}, "target_compression"),
        ({"max_relative_error": 0.0}, "max_relative_error"),
        ({"max_relative_error": 1.0}, "max_relative_error"),
        ({"rank": 1, "backend": "fast"}, "backend"),
        ({"rank": 1, "calibration": []}, "at least one batch"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            monarchize(model, **{**rest, **changes})
    kinds = [
        ({"rank": 1, "match": 3}, "match"),
        ({"rank": 1, "match": [nn.Linear]}, "match"),
        ({"rank": 1.0}, "rank"),
        ({"rank": 1, "nblocks": 2.0}, "nblocks"),
        ({"target_compression": "2"}, "target_compression"),
        ({"rank": 1, "calibration": torch.randn(3, 24)}, "put the one batch into a list"),
        ({"rank": 1, "calibration": {"x": torch.randn(3, 24)}}, "put the one batch into a list"),
        ({"rank": 1, "calibration": "text"}, "calibration"),
        ({"rank": 1, "calibration": [3]}, "expected batches that are"),
    ]
    for changes, message in kinds:
        with pytest.raises(TypeError, match=message):
            monarchize(model, **{**rest, **changes})
    assert_untouched(model, before)


def test_a_layer_alone_is_no_model() -> None:
    with pytest.raises(ValueError, match="from_linear"):
        monarchize(nn.Linear(8, 8), match="*", rank=1)
    with pytest.raises(ValueError, match="to_linear"):
        merge(MonarchLinear(8, 8, nblocks=2))
    for convert in (lambda: monarchize([], match="*", rank=1), lambda: merge({})):
        with pytest.raises(TypeError, match=r"nn\.Module"):
            convert()


def test_a_function_may_choose_by_the_module(make_model) -> None:
    model = make_model()
    report = monarchize(
        model, match=lambda name, m: getattr(m, "out_features", 0) == 40, nblocks=2, rank=1
    )
    assert [layer.name for layer in report.layers] == ["0.mlp.up", "1.mlp.up"]


def test_nothing_is_printed(make_model, inputs, capfd) -> None:
    model = make_model()
    monarchize(model, match="*.mlp.*", nblocks=2, rank=1, calibration=[inputs])
    merge(model)
    assert capfd.readouterr() == ("", "")
