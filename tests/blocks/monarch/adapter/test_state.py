"""Saving an adapter alone, and loading it elsewhere."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ropewalk.blocks.monarch.adapter import (
    MonarchAdapter,
    activate_adapters,
    adapter_state_dict,
    add_adapters,
    attach_adapter,
    load_adapter_state_dict,
)


def model(name="default", **options):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 9))
    options = {"nblocks": (2, 3), "rank": 2, **options}
    add_adapters(made, match="*", name=name, **options)
    return made


X = torch.randn(4, 12)


def test_only_the_adapter_is_saved(taught):
    made = taught(model())
    state = adapter_state_dict(made)
    assert set(state) == {
        f"{layer}.{part}" for layer in "02" for part in ("right", "left", "scaling")
    }
    assert all(not value.requires_grad for value in state.values())
    assert state["0.right"].data_ptr() == made[0].branch("default").right.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_round_trip_through_a_file_under_another_name(taught, tmp_path, dtype):
    made = taught(model(scaling=0.3)).to(dtype)
    x = X.to(dtype)
    save_file(adapter_state_dict(made), tmp_path / "adapter.safetensors")
    other = model(name="theirs").to(dtype)
    assert not torch.allclose(other(x), made(x))
    loaded = load_adapter_state_dict(
        other, load_file(tmp_path / "adapter.safetensors"), name="theirs"
    )
    assert loaded == ([], [])
    assert torch.equal(other(x), made(x))
    assert other[0].branch("theirs").scaling == 0.3
    other[0].branch("theirs").left.data.zero_()  # copied, not shared
    assert made[0].branch("default").left.any()


def test_one_of_several_adapters(taught):
    made = model(name="a")
    add_adapters(made, match="2", name="b", nblocks=3)
    taught(made)
    state = adapter_state_dict(made, name="b")
    assert set(state) == {"2.right", "2.left", "2.scaling"}
    other = model(name="a")
    add_adapters(other, match="2", name="b", nblocks=3)
    load_adapter_state_dict(other, state, name="b")
    for each in (made, other):
        activate_adapters(each, "b")
    assert torch.equal(other(X), made(X))


def test_values_are_cast_and_fill_the_meta_device(taught):
    made = taught(model())
    half = model().bfloat16()
    load_adapter_state_dict(half, adapter_state_dict(made))
    left = half[0].branch("default").left
    assert torch.equal(left, made[0].branch("default").left.bfloat16())
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 9))
    add_adapters(empty, match="*", nblocks=(2, 3), rank=2)
    load_adapter_state_dict(empty, adapter_state_dict(made))
    branch = empty[0].branch("default")
    assert torch.equal(branch.left, made[0].branch("default").left)
    assert branch.left.requires_grad
    assert empty[0].weight.is_meta


def test_a_single_layer(taught):
    layer = taught(MonarchAdapter(nn.Linear(12, 9), nblocks=3))
    state = adapter_state_dict(layer)
    assert set(state) == {"right", "left", "scaling"}
    other = MonarchAdapter(layer.base_layer, nblocks=3)
    load_adapter_state_dict(other, state)
    assert torch.equal(other(X), layer(X))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 9))


def test_a_plain_model_gets_what_the_state_dict_describes(taught):
    made = taught(model(scaling=0.3))
    state = adapter_state_dict(made)
    other = plain()
    assert attach_adapter(other, state, name="theirs", dropout=0.5) == ["0", "2"]
    assert torch.equal(other.eval()(X), made.eval()(X))
    assert other[0].branch("theirs").dropout == 0.5
    # Beside one that is there, and through torch.compile's wrapper.
    add_adapters(second := plain(), match="0", name="mine", nblocks=2)
    attach_adapter(torch.compile(second, backend="eager"), state, name="theirs")
    assert second[0].active == {"mine": 1.0}
    activate_adapters(second, "theirs")
    assert torch.equal(second(X), made(X))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: {}, ValueError, "expected the factors of an adapter, got no keys"),
        (lambda s: {**s, "7.right": s["0.right"]}, ValueError, "expected right, left and scaling"),
        (
            lambda s: {key.replace("0.", "5."): value for key, value in s.items()},
            ValueError,
            "expected layers of this Sequential, got '5', which it does not have",
        ),
        (
            lambda s: {key.replace("0.", "1."): value for key, value in s.items()},
            TypeError,
            "linear: expected nn.Linear, Conv1D or another layer .* got ReLU",
        ),
        (
            lambda s: {key.translate({48: 50, 50: 48}): value for key, value in s.items()},
            ValueError,
            r"2: expected factors \(2, 6, 10\) and \(3, 3, 4\) for 20 to 9 features",
        ),
        (lambda s: {**s, "2.left": s["2.left"][:, :, :3]}, ValueError, "with one rank r"),
    ],
)
def test_a_state_dict_of_another_model_changes_nothing(taught, change, error, words):
    state = change(adapter_state_dict(taught(model())))
    other = plain()
    with pytest.raises(error, match=words):
        attach_adapter(other, state)
    assert [type(module) for module in other] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(p.requires_grad for p in other.parameters())
    with pytest.raises(ValueError, match="0: name: expected a new one, got 'default'"):
        attach_adapter(model(), adapter_state_dict(model()))


def test_what_does_not_fit_is_reported(taught):
    made = taught(model())
    state = dict(adapter_state_dict(made))
    state["7.right"] = state.pop("0.right")
    with pytest.raises(KeyError, match=r"missing: 0.right; unexpected: 7.right; add_adapters must"):
        load_adapter_state_dict(model(), state)
    other = model()
    loaded = load_adapter_state_dict(other, state, strict=False)
    assert loaded.missing == ["0.right"]
    assert loaded.unexpected == ["7.right"]
    assert torch.equal(other[2].branch("default").right, made[2].branch("default").right)


def test_what_is_refused_changes_nothing(taught):
    state = adapter_state_dict(taught(model()))
    other = model()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    broken = {**state, "2.left": state["2.left"][:, :1]}
    with pytest.raises(ValueError, match=r"2.left: expected \(3, 3, 4\), got \(3, 1, 4\); add_ada"):
        load_adapter_state_dict(other, broken)
    with pytest.raises(KeyError, match="expected one of default, got 'b'"):
        load_adapter_state_dict(other, state, name="b")
    with pytest.raises(KeyError, match="expected one of default, got 'b'"):
        adapter_state_dict(other, name="b")
    with pytest.raises(ValueError, match="expected one with Monarch adapters"):
        load_adapter_state_dict(nn.Sequential(nn.Linear(2, 2)), state)
    torch.testing.assert_close(dict(other.state_dict()), before, rtol=0, atol=0)
    other[0].merge()
    with pytest.raises(ValueError, match=r"0: expected 'default' not to be merged; unmerge\(\)"):
        load_adapter_state_dict(other, state)


def test_attaching_is_refused_before_anything_is_changed(taught):
    only_second = plain()
    add_adapters(only_second, match="2", nblocks=3)
    state = adapter_state_dict(taught(only_second))
    other = plain()
    add_adapters(other, match="0", nblocks=2)  # of the same name, in another layer
    learning = [p.requires_grad for p in other.parameters()]
    with pytest.raises(ValueError, match="0: name: expected a new one, got 'default'"):
        attach_adapter(other, state)
    assert type(other[2]) is nn.Linear
    assert [p.requires_grad for p in other.parameters()] == learning
    attach_adapter(other, state, name="second")
    assert list(other[2].adapters) == ["second"]


BAD_VALUES = [
    ("0.scaling", torch.tensor(float("nan")), ValueError, "one finite number, 0-d, got nan"),
    ("2.scaling", torch.tensor(float("inf")), ValueError, "one finite number, 0-d, got inf"),
    ("2.scaling", torch.ones(2), ValueError, r"0-d, got the shape \(2,\)"),
    ("2.scaling", 1.0, TypeError, "a tensor, got float"),
    ("2.left", [1.0], TypeError, "a tensor, got list"),
    ("2.left", torch.ones(3, 3, 4).long(), ValueError, "floating-point values, got torch.int64"),
    ("2.right", torch.ones(2, 6, 10).cfloat(), ValueError, "floating-point values, got torch.com"),
    ("2.right", torch.empty(2, 6, 10, device="meta"), ValueError, "torch.float32 on meta"),
]


@pytest.mark.parametrize(("key", "value", "error", "words"), BAD_VALUES)
def test_values_are_looked_at_before_the_first_layer_is_filled(taught, key, value, error, words):
    state = {**adapter_state_dict(taught(model())), key: value}
    into, other = model(), plain()
    before = {name: p.clone() for name, p in into.state_dict().items()}
    with pytest.raises(error, match=f"{key}: expected .*{words}"):
        load_adapter_state_dict(into, state)
    torch.testing.assert_close(dict(into.state_dict()), before, rtol=0, atol=0)
    assert [into[index].branch("default").scaling for index in (0, 2)] == [1.0, 1.0]
    with pytest.raises(error, match=f"{key}: expected .*{words}"):
        attach_adapter(other, state)
    assert type(other[0]) is nn.Linear


@pytest.mark.parametrize("call", [load_adapter_state_dict, attach_adapter])
def test_a_state_dict_is_a_mapping(call):
    with pytest.raises(TypeError, match="state: expected what adapter_state_dict returns, got str"):
        call(model(), "adapter.safetensors")


def test_a_layer_that_cannot_be_attached_to_is_named():
    state = adapter_state_dict(model())
    embedding = nn.Sequential(nn.Embedding(12, 20), nn.ReLU(), nn.Linear(20, 9))
    with pytest.raises(TypeError, match=r"^0: linear: expected nn.Linear, .* got Embedding"):
        attach_adapter(embedding, state)
    broken = {**state, "2.left": state["2.left"][:, :, :3]}
    with pytest.raises(ValueError, match=r"^2: .*with one rank r"):
        attach_adapter(plain(), broken)
