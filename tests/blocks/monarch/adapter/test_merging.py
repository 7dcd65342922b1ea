"""Merging adapters into the weight, and getting the weight back."""

import io

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch import MonarchLinear, monarch_to_dense
from ropewalk.blocks.monarch.adapter import MonarchAdapter

F64 = torch.float64
DTYPES = [torch.bfloat16, torch.float16, torch.float32, F64]


def delta(layer, name, factor=1.0):
    branch = layer.branch(name)
    wide = torch.promote_types(branch.right.dtype, torch.float32)
    matrix = monarch_to_dense(branch.right.to(wide), branch.left.to(wide))
    return factor * branch.scaling * matrix[: layer.out_features, : layer.in_features]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(13, 18), (16, 16)], ids=str)
def test_merged_is_the_sum_rounded_once(adapted, taught, dtype, sizes):
    layer = adapted(*sizes, dtype=dtype, name="a", scaling=0.7)
    layer.add("b", nblocks=2)
    taught(layer)
    layer.activate({"a": 1.0, "b": -0.5})
    original = layer.base_layer.weight
    wide = original.to(torch.promote_types(dtype, torch.float32))
    expected = (wide + delta(layer, "a") + delta(layer, "b", -0.5)).to(dtype)
    x = torch.randn(3, 4, sizes[0], dtype=dtype)
    apart = layer(x)
    layer.merge()
    assert layer.merged == ("a", "b")
    torch.testing.assert_close(
        layer.weight.detach(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0
    )
    # One rounding of the weight against one of the product: a few units of the output.
    tolerance = 8 * torch.finfo(dtype).eps * apart.detach().abs().max().item()
    torch.testing.assert_close(layer(x), apart, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scaling", [1.0, 1e3], ids=str)
def test_unmerge_gives_back_the_parameter_itself(adapted, dtype, scaling):
    layer = adapted(dtype=dtype, scaling=scaling)
    original = layer.base_layer.weight
    values = original.detach().clone()
    x = torch.randn(5, 13, dtype=dtype)
    before = layer(x)
    for _ in range(5):
        layer.merge()
        assert layer.weight is not original
        assert not torch.equal(layer.weight, values)
        layer.unmerge()
    assert layer.base_layer.weight is original
    assert torch.equal(original, values)
    assert torch.equal(layer(x), before)
    layer.unmerge()  # of nothing, which is no mistake
    assert layer.base_layer.weight is original


def test_subtracting_would_not_find_a_bfloat16_weight_again(adapted):
    """Why the parameter is kept: the sum has forgotten it."""
    layer = adapted(dtype=torch.bfloat16, scaling=1e3)
    original = layer.base_layer.weight
    layer.merge()
    found = (layer.weight.float() - delta(layer, "default")).bfloat16()
    assert not torch.equal(found, original)


def test_merging_again_does_nothing_and_merging_more_adds(adapted, taught):
    layer = adapted(name="a")
    layer.add("b", nblocks=2)
    layer.add("idle")
    taught(layer)
    layer.activate(["a", "b"])
    x = torch.randn(5, 13, dtype=F64)
    expected = layer(x)
    layer.merge("b")
    once = layer.base_layer.weight
    layer.merge("b")
    layer.merge(["b"])
    assert layer.base_layer.weight is once
    assert layer.merged == ("b",)
    torch.testing.assert_close(layer(x), expected)  # a is computed beside it
    layer.merge()
    assert layer.merged == ("a", "b")
    torch.testing.assert_close(layer(x), expected)
    together = layer.weight.detach().clone()
    layer.unmerge()
    layer.merge()
    assert torch.equal(layer.weight, together)


def test_what_is_learned_while_merged_shows_when_merged_anew(adapted):
    layer, x = adapted(), torch.randn(5, 13, dtype=F64)
    layer.merge()
    merged = layer(x)
    layer.branch("default").left.data.mul_(2.0)
    layer.branch("default").scaling = 0.5
    assert torch.equal(layer(x), merged)
    layer.unmerge()
    torch.testing.assert_close(layer(x), merged)


def test_transposed_layers(transposed, taught):
    layer = taught(MonarchAdapter(transposed(12, 9), nblocks=3, rank=1))
    x = torch.randn(5, 9)
    expected, values = layer(x), layer.base_layer.weight.detach().clone()
    assert not torch.allclose(expected, layer.base_layer(x))
    layer.merge()
    assert layer.weight.shape == (9, 12)
    torch.testing.assert_close(layer(x), expected)
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, values)


def test_the_state_dict_holds_the_weight_without_adapters(adapted):
    layer = adapted()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    layer.merge()
    assert set(before) == {
        "base_layer.weight", "base_layer.bias", "adapters.default.right", "adapters.default.left"
    }  # fmt: skip
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)
    assert not layer.state_dict()["base_layer.weight"].requires_grad
    kept = layer.state_dict(keep_vars=True)["base_layer.weight"]
    assert kept is layer.unmerged_weight
    whole = nn.Sequential(nn.Linear(2, 13), layer).state_dict()
    assert torch.equal(whole["1.base_layer.weight"], before["base_layer.weight"])


@pytest.mark.parametrize("assign", [False, True])
def test_loading_into_a_merged_layer_merges_what_was_loaded(adapted, assign):
    layer, other = adapted(), adapted(name="default", scaling=1.0)
    torch.nn.init.normal_(other.base_layer.weight.data)
    other.branch("default").left.data.mul_(3.0)
    x = torch.randn(4, 13, dtype=F64)
    layer.merge()
    layer.load_state_dict(other.state_dict(), assign=assign)
    assert layer.merged == ("default",)
    torch.testing.assert_close(layer(x), other(x))
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, other.base_layer.weight)


def test_moving_a_merged_layer_moves_what_is_set_aside(adapted):
    layer, x = adapted(), torch.randn(4, 13)
    values = layer.base_layer.weight.detach().clone()
    layer.merge()
    original = layer.unmerged_weight
    layer.float()
    layer.unmerge()
    assert layer.base_layer.weight is original
    assert torch.equal(original, values.float())
    assert layer(x).dtype == torch.float32
    layer.merge()
    layer.to("meta")
    layer.unmerge()
    assert layer.weight.is_meta
    assert layer(x.to("meta")).shape == (4, 18)


def test_a_merged_layer_is_pickled_whole(adapted):
    layer, x = adapted(), torch.randn(4, 13, dtype=F64)
    layer.merge()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    assert torch.equal(other(x), layer(x))
    other.unmerge()
    assert torch.equal(other.base_layer.weight, layer.unmerged_weight)
    other.merge()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_merging_under_inference_mode_leaves_a_model_that_can_be_trained(adapted):
    layer = adapted()
    with torch.inference_mode():
        layer.merge()
        layer.add("b")
    assert not layer.branch("b").left.is_inference()
    assert not layer.weight.is_inference()
    x = torch.randn(3, 13, dtype=F64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None


class Quantised(nn.Module):
    """What quantisation libraries put there: integers, a scale, and a forward of its own."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        integers = torch.randint(-127, 127, (out_features, in_features), dtype=torch.int8)
        self.weight = nn.Parameter(integers, requires_grad=False)
        self.register_buffer("scale", torch.full((out_features, 1), 0.01))

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.scale)


class Packed(Quantised):
    """Packed into words of its own, without a weight."""

    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features)
        self.qweight = self.weight
        del self.weight

    def forward(self, x):
        return nn.functional.linear(x, self.qweight * self.scale)


@pytest.mark.parametrize("kind", [Quantised, Packed])
def test_quantised_layers_learn_and_only_cannot_be_merged(kind, taught):
    base = kind(13, 18)
    x = torch.randn(4, 13)
    before = base(x)
    layer = MonarchAdapter(base, nblocks=3)
    assert torch.equal(layer(x), before)
    assert layer.branch("default").right.dtype == torch.float32
    left = layer.branch("default").left
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), left)
    assert gradient.abs().sum() > 0
    taught(layer)
    expected = layer(x)
    torch.testing.assert_close(expected, before + x @ delta(layer, "default").mT)
    with pytest.raises(ValueError, match="merge: expected a layer with a plain weight, but"):
        layer.merge()
    assert layer.merged == ()
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "is computed"),
        (lambda: MonarchLinear(8, 8, nblocks=2), "MonarchLinear has no weight that is a parameter"),
        (lambda: Quantised(8, 8), "quantised .Parameter of torch.int8"),
    ],
)
def test_weights_that_cannot_be_added_to(make, words):
    layer = MonarchAdapter(make(), nblocks=2)
    with pytest.raises(ValueError, match=words):
        layer.merge()


def test_bad_merges(adapted, taught):
    layer = adapted(name="a")
    layer.add("b")
    taught(layer)
    with pytest.raises(KeyError, match="expected one of a, b, got 'c'"):
        layer.merge("c")
    with pytest.raises(ValueError, match=r"expected active adapters \(a\), got 'b'; activate it"):
        layer.merge(["a", "b"])
    assert layer.merged == ()
    layer.merge()
    for call in (lambda: layer.activate("b"), lambda: layer.delete("a")):
        with pytest.raises(ValueError, match=r"expected no merged adapters, got a; unmerge\(\)"):
            call()
    layer.delete("b")
    layer.unmerge()
    layer.branch("a").left.data.fill_(1e300)
    original = layer.base_layer.weight
    layer.half()
    with pytest.raises(ValueError, match="merge: expected a sum of finite numbers"):
        layer.merge()
    assert layer.base_layer.weight is original


def test_nothing_active_is_nothing_to_merge(adapted):
    layer = adapted()
    layer.activate([])
    original = layer.weight
    layer.merge()
    assert layer.weight is original
    assert layer.merged == ()


def test_a_state_dict_holds_no_parameters(adapted):
    layer = adapted()
    layer.merge()
    state = layer.state_dict()
    assert {type(value) for value in state.values()} == {torch.Tensor}
    assert all(value.grad_fn is None for value in state.values())


@pytest.mark.parametrize("assign", [False, True])
def test_a_load_that_cannot_be_merged_leaves_the_layer_as_it_was(adapted, assign):
    layer, x = adapted(), torch.randn(3, 13, dtype=F64)
    layer.merge()
    expected, original = layer(x), layer.unmerged_weight
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    state = {key: torch.full_like(value, 2.0) for key, value in before.items()}
    state["adapters.default.left"].fill_(float("nan"))
    with pytest.raises(ValueError, match="merge: expected a sum of finite numbers"):
        layer.load_state_dict(state, assign=assign)
    assert layer.merged == ("default",)
    assert layer.unmerged_weight is original
    assert torch.equal(layer(x), expected)
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)
    layer.load_state_dict(before)
    layer.unmerge()
    layer.load_state_dict(before)  # nothing is merged again of an earlier time
    assert layer.merged == ()


@pytest.fixture
def one_rank():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_sharded_weights_are_not_added_to(adapted):
    layer = adapted(dtype=torch.float32)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.fsdp.fully_shard(layer.base_layer, mesh=mesh)
    assert layer.weight is layer.base_layer.weight
    with pytest.raises(ValueError, match="its weight is sharded; merge before fully_shard"):
        layer.merge()
    assert layer(torch.randn(2, 13)).shape == (2, 18)
