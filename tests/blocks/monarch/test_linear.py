"""The layer: like `nn.Linear` from outside, near to one from inside."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch import MonarchLinear, MonarchShape, monarch_project
from ropewalk.kernels.monarch import matmul

# Features, blocks, rank: square, tall, wide, filled up on either side, one of everything.
SHAPES = [
    (16, 16, 4, None),
    (12, 30, (3, 5), 2),
    (30, 12, 2, 3),
    (13, 11, (3, 2), 2),
    (11, 16, (4, 4), 1),
    (1, 1, 1, 1),
]
every_shape = pytest.mark.parametrize(("inputs", "outputs", "nblocks", "rank"), SHAPES)


def make(inputs, outputs, nblocks, rank, **options):
    torch.manual_seed(0)
    return MonarchLinear(inputs, outputs, nblocks=nblocks, rank=rank, **options)


@every_shape
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,)])
def test_it_is_one_with_the_dense_layer_that_it_turns_into(
    inputs, outputs, nblocks, rank, bias, batch
):
    layer = make(inputs, outputs, nblocks, rank, bias=bias, dtype=torch.float64)
    linear, x = layer.to_linear(), torch.randn(*batch, inputs, dtype=torch.float64)
    assert type(linear) is nn.Linear
    assert (linear.bias is None) == (not bias)
    torch.testing.assert_close(layer(x), linear(x))
    torch.testing.assert_close(layer.weight, linear.weight)


@every_shape
def test_gradients_are_those_of_the_matrix(inputs, outputs, nblocks, rank):
    layer = make(inputs, outputs, nblocks, rank, dtype=torch.float64)
    x = torch.randn(3, inputs, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    ours = torch.autograd.grad(layer(x).square().sum(), leaves)
    by_matrix = nn.functional.linear(x, layer.weight, layer.bias)
    theirs = torch.autograd.grad(by_matrix.square().sum(), leaves)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("inputs", "outputs", "nblocks", "rank"),
    [
        (512, 512, 4, None),
        (256, 1024, 8, 2),
        (1024, 256, 8, 1),
        (250, 509, (7, 6), 3),
        (5, 2000, (3, 1), 2),
    ],
)
def test_the_output_varies_as_that_of_a_dense_layer(inputs, outputs, nblocks, rank):
    """Averaged over layers, because one layer of few factors is a draw of few numbers."""
    torch.manual_seed(0)
    x = torch.randn(256, inputs)

    @torch.no_grad()
    def deviation(make_layer):
        squares = [make_layer()(x).square().mean() for _ in range(12 if inputs > 99 else 300)]
        return torch.stack(squares).mean().sqrt()

    ours = deviation(lambda: MonarchLinear(inputs, outputs, nblocks=nblocks, rank=rank, bias=False))
    dense = deviation(lambda: nn.Linear(inputs, outputs, bias=False))
    assert float(ours / dense) == pytest.approx(1.0, abs=0.03)


def test_the_bias_is_drawn_as_that_of_a_dense_layer():
    torch.manual_seed(0)
    bias = MonarchLinear(64, 4096, nblocks=8, rank=1).get_parameter("bias")
    assert bias.abs().max() <= 1 / math.sqrt(64)
    assert float(bias.detach().std()) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)


@pytest.mark.parametrize(("nblocks", "rank"), [(4, None), ((3, 5), 2), (1, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_is_the_projection(nblocks, rank, bias):
    linear = nn.Linear(31, 50, bias=bias).eval()
    before = copy.deepcopy(linear.state_dict())
    layer = MonarchLinear.from_linear(linear, nblocks=nblocks, rank=rank)
    found = monarch_project(linear.weight, nblocks=nblocks, rank=rank)
    assert layer.relative_error == found.relative_error
    error = (layer.weight - linear.weight).norm() / linear.weight.norm()
    assert layer.relative_error == pytest.approx(error.item(), rel=1e-4)
    assert not layer.training
    if bias:
        torch.testing.assert_close(layer.bias, linear.bias, rtol=0, atol=0)
        assert layer.get_parameter("bias").data_ptr() != linear.bias.data_ptr()
    torch.testing.assert_close(linear.state_dict(), before, rtol=0, atol=0)
    again = MonarchLinear.from_linear(layer.to_linear(), nblocks=nblocks, rank=rank)
    assert again.relative_error == pytest.approx(0.0, abs=1e-5)


def test_what_it_turns_into_is_apart_from_it_and_in_the_same_mode():
    layer = make(13, 11, (3, 2), 2).eval()
    linear = layer.to_linear()
    assert linear.bias.data_ptr() != layer.get_parameter("bias").data_ptr()
    turned = layer.transpose()
    assert turned.right.data_ptr() != layer.left.data_ptr()
    assert [m.training for m in (linear, turned)] == [False, False]
    assert layer.train().to_linear().training
    assert layer.transpose().training


def test_the_dense_weight_of_half_precision_is_rounded_once():
    layer = make(64, 64, 4, 16, dtype=torch.bfloat16)
    wide = copy.deepcopy(layer).double().weight
    expected = wide.float().to(torch.bfloat16)
    torch.testing.assert_close(layer.to_linear().weight, expected, rtol=0, atol=1e-4)


def test_the_backend_is_the_one_that_was_asked_for(monkeypatch):
    def refuse(*_):
        raise AssertionError("the two products")

    monkeypatch.setattr(matmul, "eager_product", refuse)
    layer = MonarchLinear(32, 32, nblocks=4, backend="dense")
    layer(torch.randn(3, 32))
    layer.transpose()(torch.randn(3, 32))
    layer.backend = "reference"
    for asked in (layer, layer.transpose()):
        with pytest.raises(AssertionError, match="the two products"):
            asked(torch.randn(3, 32))


@pytest.mark.parametrize("rows", [4, 3000])
def test_torch_func_sees_through_it_with_any_number_of_rows(rows):
    layer = make(128, 96, 8, 1, dtype=torch.float64)
    x, tangent = torch.randn(2, rows, 128, dtype=torch.float64)
    expected = torch.func.jvp(layer.to_linear(), (x,), (tangent,))
    torch.testing.assert_close(torch.func.jvp(layer, (x,), (tangent,)), expected)
    factors = dict(layer.named_parameters())

    def loss(factors, row):
        return torch.func.functional_call(layer, factors, (row,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(factors, x[:3])
    for name, gradient in each.items():
        assert gradient.shape == (3, *factors[name].shape)
    whole = torch.autograd.grad(layer(x[:3]).square().sum(), list(factors.values()))
    torch.testing.assert_close([g.sum(0) for g in each.values()], list(whole))
    layer.backend = "triton"
    with pytest.raises(ValueError, match=r"under torch\.func"):
        torch.func.jvp(layer, (x,), (tangent,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported_for_any_number_of_rows():
    layer = make(128, 96, 8, 1)
    rows = torch.export.Dim("rows", min=2, max=100_000)
    program = torch.export.export(layer, (torch.randn(4, 128),), dynamic_shapes=({0: rows},))
    for count in (2, 9000):
        x = torch.randn(count, 128)
        torch.testing.assert_close(program.module()(x), layer(x))


def test_the_output_can_be_viewed_where_features_are_filled_up():
    y = make(16, 18, 4, 1)(torch.randn(2, 3, 16))
    assert y.view(2, -1).shape == (2, 54)


def test_from_linear_keeps_what_is_frozen():
    linear = nn.Linear(16, 16).requires_grad_(False)
    linear.bias.requires_grad_(True)
    layer = MonarchLinear.from_linear(linear)
    assert [p.requires_grad for p in layer.parameters()] == [False, False, True]
    back = layer.to_linear()
    assert [back.weight.requires_grad, back.bias.requires_grad] == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    layer = make(24, 16, 4, 2, dtype=dtype)
    x = torch.randn(5, 24).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {dtype}
    exact = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(y.double(), exact, rtol=0.05, atol=0.05)
    assert layer.to_linear().weight.dtype == dtype


def test_autocast_with_parameters_and_input_of_float32():
    layer = make(13, 11, (3, 2), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(4, 13))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    grads = [p.grad for p in layer.parameters() if p.grad is not None]
    assert [g.dtype for g in grads] == [torch.float32] * 3


@every_shape
def test_state_dict_goes_round_and_copies_are_apart(inputs, outputs, nblocks, rank):
    layer = make(inputs, outputs, nblocks, rank)
    assert set(layer.state_dict()) == {"right", "left", "bias"}
    other = MonarchLinear(inputs, outputs, nblocks=nblocks, rank=rank)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(3, inputs)
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.right.add_(1.0)
    torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    assert twin.shape == layer.shape


def test_meta_and_then_memory():
    layer = MonarchLinear(24, 16, nblocks=4, rank=2, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    assert layer(torch.empty(5, 24, device="meta")).shape == (5, 16)
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    assert layer(torch.randn(5, 24)).isfinite().all()


@every_shape
def test_compiles_as_a_whole(inputs, outputs, nblocks, rank):
    layer = make(inputs, outputs, nblocks, rank)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, inputs)
    torch.testing.assert_close(compiled(x), layer(x))
    ours = torch.autograd.grad(compiled(x).sum(), list(layer.parameters()))
    theirs = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    torch.testing.assert_close(ours, theirs)


def test_input_of_any_strides():
    layer = make(13, 11, (3, 2), 2)
    x = torch.randn(13, 4, 6).permute(2, 1, 0)[::2]
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


@every_shape
def test_transposed(inputs, outputs, nblocks, rank):
    layer = make(inputs, outputs, nblocks, rank)
    turned = layer.transpose()
    assert (turned.in_features, turned.out_features) == (outputs, inputs)
    assert turned.bias is None
    torch.testing.assert_close(turned.weight, layer.weight.T)
    y = torch.randn(3, outputs)
    torch.testing.assert_close(turned(y), y @ layer.weight)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("features", "nblocks", "rank"), [(16, 4, 1), (20, (4, 5), 1), (32, 4, 2)])
def test_what_it_made_is_solved_for(features, nblocks, rank, bias):
    layer = make(features, features, nblocks, rank, bias=bias, dtype=torch.float64)
    x = torch.randn(2, 3, features, dtype=torch.float64)
    torch.testing.assert_close(layer.solve(layer(x)), x)
    expected = torch.linalg.slogdet(layer.weight).logabsdet
    torch.testing.assert_close(layer.log_abs_det(), expected)


def test_what_it_made_under_autocast_is_solved_for():
    layer = MonarchLinear(16, 16, nblocks=4, rank=1, bias=False)
    with torch.no_grad():
        for factor in layer.parameters():
            factor.copy_(torch.eye(4) + 0.1 * factor)
    x = torch.randn(3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer.solve(layer(x))
    torch.testing.assert_close(found, x, rtol=0.05, atol=0.05)


def test_what_cannot_be_inverted_says_so():
    with pytest.raises(ValueError, match="expected numbers that divide the features"):
        make(13, 13, 3, 2).log_abs_det()
    with pytest.raises(ValueError, match="expected numbers that divide the features"):
        make(15, 15, 2, 4).solve(torch.randn(15))
    with pytest.raises(TypeError, match="y: expected a tensor, got list"):
        make(16, 16, 4, 1).solve([1.0])
    with pytest.raises(ValueError, match="square"):
        make(16, 16, 4, 2).solve(torch.randn(16))
    with pytest.raises(ValueError, match=r"y: expected \(\.\.\., 16\), got \(4,\)"):
        make(16, 16, 4, 1).solve(torch.randn(4))


def test_its_text_counts_parameters_and_operations():
    layer = MonarchLinear(1024, 1024, nblocks=8, bias=False)
    words = repr(layer)
    assert "1024, 1024, nblocks=(8, 8), rank=16" in words
    assert "parameters=262144 (25.0% of dense)" in words
    assert "flops=524288 a row (dense 2097152)" in words
    assert sum(p.numel() for p in layer.parameters()) == 262144
    near = MonarchLinear.from_linear(nn.Linear(16, 16), backend="reference")
    assert f"relative_error={near.relative_error:.4f}" in repr(near)
    assert "backend=reference" in repr(near)
    assert "backend=auto (float32 on cpu: never dense)" in words
    small = repr(MonarchLinear(64, 64, nblocks=4, rank=16))
    assert re.search(r"backend=auto \(float32 on cpu: dense from \d+ rows\)", small)


def test_from_factors_checks_and_copies():
    shape = MonarchShape.of(13, 11, nblocks=(3, 2), rank=2)
    right, left = torch.randn(shape.right_shape), torch.randn(shape.left_shape)
    layer = MonarchLinear.from_factors(right, left, torch.zeros(11), shape=shape)
    assert layer.right.data_ptr() != right.data_ptr()
    whole = MonarchLinear.from_factors(right, left)
    assert (whole.in_features, whole.out_features) == (15, 12)
    with pytest.raises(ValueError, match=r"bias: expected \(11,\), got \(12,\)"):
        MonarchLinear.from_factors(right, left, torch.zeros(12), shape=shape)
    with pytest.raises(ValueError, match="with one rank"):
        MonarchLinear.from_factors(right, left[..., :-1])
    with pytest.raises(ValueError, match="left: expected"):
        MonarchLinear.from_factors(right, torch.randn(2, 7, 6), shape=shape)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ([1.0], TypeError, "x: expected a tensor, got list"),
        (torch.randn(2, 12), ValueError, r"x: expected \(\.\.\., 13\), got \(2, 12\)"),
        (torch.tensor(1.0), ValueError, "x: expected"),
        (torch.ones(2, 13, dtype=torch.int64), ValueError, r"got torch.int64; use x\.to"),
        (torch.ones(2, 13, dtype=torch.float64), ValueError, "x: expected torch.float32 as the"),
    ],
)
def test_rows_that_do_not_fit(given, error, words):
    with pytest.raises(error, match=words):
        make(13, 11, (3, 2), 2)(given)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"nblocks": 64}, ValueError, "leave slices empty"),
        ({"rank": 100}, ValueError, "rank: expected at most 16"),
        ({"bias": torch.zeros(64)}, TypeError, "bias: expected True or False, got Tensor"),
        ({"dtype": torch.int8}, ValueError, "dtype: expected a floating-point one"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of auto"),
    ],
)
def test_refused(options, error, words):
    with pytest.raises(error, match=words):
        MonarchLinear(64, 64, **options)


def test_only_dense_layers_are_projected():
    with pytest.raises(TypeError, match=r"expected an nn\.Linear, got Conv2d"):
        MonarchLinear.from_linear(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="got a lazy one; call it once before"):
        MonarchLinear.from_linear(nn.LazyLinear(8))
