"""One layer and its adapters: what it computes, what learns, what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ropewalk.blocks.monarch import MonarchLinear, monarch_to_dense
from ropewalk.blocks.monarch.adapter import MonarchAdapter

F64 = torch.float64
DTYPES = [torch.float32, torch.bfloat16, torch.float16, F64]
SIZES = [(16, 16), (13, 18), (7, 30), (30, 5)]


def bits(x):
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def dense(layer, name):
    branch = layer.branch(name)
    matrix = monarch_to_dense(branch.right, branch.left)
    return branch.scaling * matrix[: layer.out_features, : layer.in_features]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_no_effect_at_the_start_bit_for_bit(sizes, dtype, bias):
    linear = nn.Linear(*sizes, bias=bias, dtype=dtype)
    x = torch.randn(2, 5, sizes[0], dtype=dtype)
    before = linear(x)
    for factors in (None, torch.float32):
        layer = MonarchAdapter(linear, nblocks=(2, 3), rank=2, scaling=8.0, dtype=factors)
        after = layer(x)
        assert after.dtype == dtype
        assert torch.equal(bits(after), bits(before))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(bits(layer(x)), bits(linear(x)))


def test_a_transposed_layer_and_a_half_quantised_one_start_without_effect(transposed):
    for linear in (transposed(12, 9), MonarchLinear(9, 12, nblocks=2)):
        x = torch.randn(4, 9)
        before = linear(x)
        assert torch.equal(MonarchAdapter(linear, nblocks=3)(x), before)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("batch", [(), (4,), (2, 1, 3), (0,)], ids=str)
def test_it_adds_the_products_of_the_active_adapters(adapted, taught, sizes, batch):
    layer = adapted(*sizes, name="a", scaling=0.5, nblocks=(3, 2))
    layer.add("b", nblocks=2, rank=1, scaling=-2.0)
    layer.add("c", nblocks=2)
    taught(layer)
    x = torch.randn(*batch, sizes[0], dtype=F64)
    base = layer.base_layer(x)
    products = {name: x @ dense(layer, name).mT for name in "abc"}
    torch.testing.assert_close(layer(x), base + products["a"])
    layer.activate(["c", "b"])
    torch.testing.assert_close(layer(x), base + products["b"] + products["c"])
    layer.activate({"a": 0.25, "b": -3.0})
    torch.testing.assert_close(layer(x), base + 0.25 * products["a"] - 3 * products["b"])
    layer.activate([])
    assert torch.equal(layer(x), base)


def test_only_factors_learn_and_from_the_first_step():
    linear = nn.Linear(12, 12)
    layer = MonarchAdapter(linear, nblocks=3, rank=2)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {
        "adapters.default.right",
        "adapters.default.left",
    }
    torch.manual_seed(0)
    x = torch.randn(64, 12)
    target = (linear(x) + x @ torch.randn(12, 12)).detach()
    before = [linear.weight.clone(), linear.bias.clone()]
    optimizer = torch.optim.Adam([p for p in layer.parameters() if p.requires_grad], 0.05)
    losses = []
    for _ in range(30):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(linear.weight, before[0])
    assert torch.equal(linear.bias, before[1])
    assert linear.weight.grad is None


def test_gradients(adapted):
    layer = adapted(5, 6, nblocks=2, rank=1)
    x = torch.randn(3, 5, dtype=F64, requires_grad=True)
    factors = {name: p for name, p in layer.named_parameters() if p.requires_grad}

    def function(x, *values):
        given = dict(zip(factors, values, strict=True))
        return torch.func.functional_call(layer, given, (x,))

    assert torch.autograd.gradcheck(function, (x, *factors.values()))


def test_dropout_is_for_training_and_for_the_adapter_alone(adapted):
    layer = adapted(30, 30, dropout=0.5)
    x = torch.randn(200, 30, dtype=F64)
    layer.eval()
    still = layer(x)
    assert torch.equal(still, layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    mean = torch.stack([layer(x) for _ in range(300)]).mean(0)
    assert (mean - still).abs().mean() < 0.1 * (layer(x) - still).abs().mean()
    layer.activate([])
    assert torch.equal(layer(x), layer.base_layer(x))
    assert MonarchAdapter(nn.Linear(16, 16).eval()).branch("default").training is False


@pytest.mark.parametrize("factors", [None, torch.float32], ids=str)
def test_autocast_and_mixed_dtypes(adapted, factors):
    exact = adapted(16, 16)
    layer = copy.deepcopy(exact).to(torch.bfloat16)
    if factors is not None:
        layer.adapters.to(factors)
    x = torch.randn(5, 16, dtype=torch.bfloat16, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=3e-2, atol=3e-2)
    y.float().sum().backward()
    branch = layer.branch("default")
    assert branch.right.grad is not None
    assert branch.right.grad.dtype == branch.right.dtype
    single = exact.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = single(x.detach().float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), single(x.detach().float()), rtol=3e-2, atol=3e-2)


def test_copies_do_not_share(adapted):
    layer, x = adapted(), torch.randn(3, 13, dtype=F64)
    layer.merge()
    other, expected = copy.deepcopy(layer), layer(x)
    assert torch.equal(other(x), expected)
    other.unmerge()
    other.delete("default")
    assert torch.equal(layer(x), expected)
    assert other.merged == ()
    assert layer.merged == ("default",)


def test_meta_device():
    layer = MonarchAdapter(nn.Linear(13, 18, device="meta"), nblocks=3)
    assert layer(torch.empty(2, 13, device="meta")).shape == (2, 18)
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    for module in layer.modules():
        if isinstance(module, nn.Linear | MonarchLinear):
            module.reset_parameters()
    x = torch.randn(2, 13)
    assert torch.equal(layer(x), layer.base_layer(x))
    assert layer.branch("default").right.std() > 0


def test_compiled_whole(adapted):
    layer, x = adapted(dtype=torch.float32), torch.randn(4, 13)
    layer.add("b", nblocks=2)
    layer.activate({"default": 1.0, "b": 0.5})
    expected = layer(x)
    expected.square().sum().backward()
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    assert len(gradients) == 4
    layer.zero_grad(set_to_none=True)
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    got.square().sum().backward()
    torch.testing.assert_close(got, expected)
    again = [p.grad for p in layer.parameters() if p.grad is not None]
    torch.testing.assert_close(again, gradients)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(adapted, reentrant):
    layer = adapted(dropout=0.3).train()
    x = torch.randn(4, 13, dtype=F64, requires_grad=reentrant)

    def gradients(run):
        layer.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        run(x).square().sum().backward()
        return [p.grad for p in layer.parameters() if p.grad is not None]

    plain = gradients(layer)
    again = gradients(lambda x: checkpoint(layer, x, use_reentrant=reentrant))
    torch.testing.assert_close(again, plain)
    assert len(plain) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_on_a_device(taught, dtype):
    linear = nn.Linear(200, 330, dtype=dtype, device="cuda")
    x = torch.randn(64, 200, dtype=dtype, device="cuda")
    before, layer = linear(x), MonarchAdapter(linear, nblocks=(3, 5), rank=4)
    assert layer.branch("default").right.is_cuda
    assert torch.equal(bits(layer(x)), bits(before))
    taught(layer)
    expected = linear(x).double() + x.double() @ dense(layer, "default").double().mT
    tolerance = 8 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=tolerance)
    layer(x).float().square().mean().backward()
    assert layer.branch("default").left.grad is not None
    weight = linear.weight
    layer.merge()
    torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=tolerance)
    layer.cpu().unmerge()
    assert linear.weight is weight
    assert not weight.is_cuda


def test_rename_and_delete_keep_what_was_learned(adapted, taught):
    layer, x = adapted(name="a"), torch.randn(3, 13, dtype=F64)
    layer.add("b")
    taught(layer)
    layer.activate({"b": 2.0, "a": 0.5})
    expected = layer(x)
    layer.rename("a", "first")
    assert layer.active == {"b": 2.0, "first": 0.5}
    assert list(layer.adapters) == ["first", "b"]
    assert torch.equal(layer(x), expected)
    layer.delete("b")
    assert layer.active == {"first": 0.5}
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 0.5 * x @ dense(layer, "first").mT)
    layer.merge()
    merged = layer(x)
    layer.rename("first", "last")
    assert layer.merged == ("last",)
    assert torch.equal(layer(x), merged)
    layer.add("first")


def test_it_shows_its_layer_to_models_that_look(adapted):
    layer = adapted(dtype=torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.bias is layer.base_layer.bias
    assert (layer.in_features, layer.out_features) == (13, 18)
    assert "active={'default': 1.0}, merged=[]" in repr(layer)
    assert "rank=2" in repr(layer)


class Lookup(nn.Embedding):
    """Has a weight and is no linear layer."""


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: MonarchAdapter(torch.ones(3, 3)), TypeError, "linear: expected a module, got Te"),
        (lambda: MonarchAdapter(Lookup(3, 3)), TypeError, "expected nn.Linear, Conv1D or .*Lookup"),
        (
            lambda: MonarchAdapter(nn.MultiheadAttention(8, 2).out_proj),
            ValueError,
            "expected a layer that is called, got the out_proj",
        ),
        (lambda: MonarchAdapter(nn.LazyLinear(8)), ValueError, "run the model once"),
        (
            lambda: MonarchAdapter(nn.Linear(8, 8, dtype=torch.complex64), nblocks=2),
            ValueError,
            "linear: expected a layer of real numbers, got a complex Linear",
        ),
        (
            lambda: MonarchAdapter(MonarchAdapter(nn.Linear(8, 8), nblocks=2), name="b"),
            ValueError,
            r"got a MonarchAdapter; give it another adapter with .add\('b'\)",
        ),
        (lambda: make(name="a.b"), ValueError, "name: expected a word without dots"),
        (lambda: make(name=""), ValueError, "name: expected a word without dots"),
        (lambda: make(name="keys"), ValueError, "that nn.ModuleDict does not use, got 'keys'"),
        (lambda: make(name="training"), ValueError, "that nn.ModuleDict does not use"),
        (lambda: make(name=3), TypeError, "name: expected a string, got 3"),
        (lambda: make(scaling=float("inf")), ValueError, "scaling: expected a finite number"),
        (lambda: make(scaling="1"), TypeError, "scaling: expected a finite number, got '1'"),
        (lambda: make(dropout=1.0), ValueError, "dropout: expected 0 ≤ p < 1, got 1.0"),
        (lambda: make(dropout=None), TypeError, "dropout: expected a probability"),
        (lambda: make(nblocks=5), ValueError, "nblocks: expected"),
        (lambda: make(nblocks=2, rank=9), ValueError, "rank: expected at most 4"),
        (lambda: make(backend="cuda"), ValueError, "backend: expected one of"),
        (lambda: make(dtype=torch.int8), ValueError, "dtype: expected a floating-point one"),
        (lambda: make().add("default"), ValueError, "expected a new one, got 'default'"),
        (lambda: make().activate("b"), KeyError, "name: expected one of default, got 'b'"),
        (lambda: make().activate(["default", "default"]), ValueError, "names: expected each once"),
        (lambda: make().activate({"default": "1"}), TypeError, "default: expected a finite number"),
        (lambda: make().activate({"default": float("nan")}), ValueError, "expected a finite weig"),
        (lambda: make().activate(3), TypeError, "names: expected a name, several, or their wei"),
        (lambda: make().merge({"default": 0.5}), TypeError, "merge: expected names, got weights"),
        (lambda: make().delete("b"), KeyError, "name: expected one of default, got 'b'"),
        (lambda: make().rename("b", "c"), KeyError, "name: expected one of default"),
        (lambda: make().rename("default", "a.b"), ValueError, "name: expected a word without dots"),
        (lambda: make().rename("default", "default"), ValueError, "expected a new one"),
        (lambda: make()(torch.ones(2, 5)), RuntimeError, "mat1 and mat2"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()


def make(**options):
    return MonarchAdapter(nn.Linear(8, 8), **{"nblocks": 2, **options})


@pytest.mark.parametrize("options", [{"nblocks": 9}, {"name": "a.b"}, {"dropout": 2.0}], ids=str)
def test_a_refused_layer_is_left_as_it_was(options):
    linear = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="expected"):
        MonarchAdapter(linear, **options)
    assert all(p.requires_grad for p in linear.parameters())
    layer = make()
    state = {name: p.clone() for name, p in layer.state_dict().items()}
    with pytest.raises(ValueError, match="expected"):
        layer.add(**{"name": "b", **options})
    assert list(layer.adapters) == ["default"]
    torch.testing.assert_close(dict(layer.state_dict()), state)


def test_a_new_adapter_is_in_the_layer_s_mode():
    layer = make().eval()
    layer.add("b", nblocks=2, dropout=0.5)
    assert layer.branch("b").training is False
    layer.train().add("c", nblocks=2)
    assert layer.branch("c").training is True


def test_float8_is_no_dtype_to_compute_in():
    base = nn.Linear(8, 8)
    base.weight = nn.Parameter(base.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    base.bias = None
    layer = MonarchAdapter(base, nblocks=2)
    assert layer.branch("default").right.dtype == torch.float32
    assert layer.weight is base.weight
    with pytest.raises(ValueError, match=r"quantised \(Parameter of torch.float8_e4m3fn\)"):
        layer.merge()
