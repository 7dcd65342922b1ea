"""Products of any order against their definition, and the layer that they make."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from ropewalk.blocks.monarch.product import (
    MonarchProduct,
    monarch_product,
    product_sizes,
    product_to_dense,
)
from ropewalk.kernels.monarch import monarch_matmul

F64 = torch.float64
# input axes, output axes
AXES = [
    ((5,), (3,)),
    ((1, 4), (2, 1)),
    ((3, 4), (5, 2)),
    ((2, 3, 5), (4, 2, 3)),
    ((2, 2, 2, 3), (3, 2, 1, 2)),
]


def factors_of(inputs, outputs, dtype=F64):
    layer = MonarchProduct(inputs, outputs, bias=False, dtype=F64)
    drawn = [torch.randn(factor.shape, dtype=F64) for factor in layer.factors]
    if dtype.is_complex:
        drawn = [torch.complex(factor, torch.randn_like(factor)) for factor in drawn]
    return [factor.to(dtype) for factor in drawn]


def gradients_of(layer):
    gradients = [p.grad for p in layer.parameters() if p.grad is not None]
    assert len(gradients) == len(list(layer.parameters()))
    return gradients


def defined(x, factors, inputs, outputs):
    """Axis by axis and block by block, as the module's docstring says it."""
    state, order = x.reshape(inputs), len(inputs)
    for j, factor in enumerate(factors):
        others = outputs[:j] + inputs[: order - j - 1]
        made = state.new_zeros((*outputs[: j + 1], *inputs[: order - j - 1]))
        for block, at in enumerate(itertools.product(*map(range, others))):
            made[(*at[:j], slice(None), *at[j:])] = factor[block] @ state[at]
        state = made
    return state.flatten()


@pytest.mark.parametrize(("inputs", "outputs"), AXES, ids=str)
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0, 2)], ids=str)
def test_definition(inputs, outputs, batch):
    factors = factors_of(inputs, outputs)
    assert product_sizes(factors) == (inputs, outputs)
    x = torch.randn(*batch, math.prod(inputs), dtype=F64)
    got = monarch_product(x, factors)
    assert got.shape == (*batch, math.prod(outputs))
    rows = (tensor.reshape(math.prod(batch), tensor.shape[-1]) for tensor in (x, got))
    for row, actual in zip(*rows, strict=True):
        torch.testing.assert_close(actual, defined(row, factors, inputs, outputs))
    torch.testing.assert_close(got, x @ product_to_dense(factors).mT)


@pytest.mark.parametrize("sizes", [((2, 3, 5), (4, 2, 3))], ids=str)
def test_inputs_of_any_strides(sizes):
    factors = factors_of(*sizes)
    x = torch.randn(30, 3, 2, dtype=F64).permute(2, 1, 0)
    torch.testing.assert_close(monarch_product(x, factors), monarch_product(x.clone(), factors))
    strided = [torch.randn(*factor.mT.shape, dtype=F64).mT for factor in factors]
    plain = [factor.contiguous() for factor in strided]
    torch.testing.assert_close(monarch_product(x, strided), monarch_product(x, plain))


@pytest.mark.parametrize(("inputs", "outputs"), [((3, 4), (5, 2)), ((1, 6), (2, 3))], ids=str)
@pytest.mark.parametrize("dtype", [F64, torch.complex128], ids=str)
def test_two_factors_are_a_monarch_matrix_of_rank_one(inputs, outputs, dtype):
    right, left = factors_of(inputs, outputs, dtype)
    x = torch.randn(4, math.prod(inputs), dtype=dtype)
    torch.testing.assert_close(monarch_product(x, [right, left]), monarch_matmul(x, right, left))


def test_one_factor_is_a_dense_matrix():
    (factor,) = factors_of((5,), (3,))
    x = torch.randn(4, 5, dtype=F64)
    torch.testing.assert_close(monarch_product(x, [factor]), x @ factor[0].mT)


@pytest.mark.parametrize("sizes", [(4,), (3, 4), (2, 3, 4), (2, 2, 2, 2)], ids=str)
def test_identities_reverse_the_axes(sizes):
    layer = MonarchProduct(sizes, bias=False, dtype=F64)
    with torch.no_grad():
        for factor in layer.factors:
            factor.copy_(torch.eye(factor.shape[1], dtype=F64))
    x = torch.randn(2, math.prod(sizes), dtype=F64)
    reversed_axes = x.reshape(2, *sizes).permute(0, *range(len(sizes), 0, -1)).reshape(2, -1)
    assert torch.equal(layer(x), reversed_axes)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [((512,), (256,)), ((16, 32), (8, 64)), ((8, 8, 8), (4, 8, 16)), ((4,) * 5, (4,) * 5)],
    ids=str,
)
def test_the_output_starts_with_the_variance_of_a_dense_layer(inputs, outputs):
    torch.manual_seed(0)
    layers = [MonarchProduct(inputs, outputs) for _ in range(3)]
    x = torch.randn(3000, math.prod(inputs))
    with torch.no_grad():
        ours = torch.cat([layer(x) for layer in layers], -1).std()
        dense = nn.Linear(math.prod(inputs), math.prod(outputs))(x).std()
    assert abs(ours / dense - 1) < 0.03


def test_parameters_are_those_of_the_axes():
    layer = MonarchProduct((4, 4, 4), bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 4 * 64  # p · n^(1 + 1/p)
    butterfly = MonarchProduct((2,) * 6, bias=False)
    assert sum(p.numel() for p in butterfly.parameters()) == 64 * 6 * 2
    assert sum(p.numel() for p in MonarchProduct((4, 4, 4)).parameters()) == 3 * 256 + 64


def test_it_says_what_it_is():
    assert repr(MonarchProduct((4, 8), (2, 8), bias=False)).startswith(
        "MonarchProduct(\n  (4, 8) to (2, 8), bias=False, parameters=128 (25.0% of dense), "
        "flops=256 a row (dense 1024)"
    )


@pytest.mark.parametrize("dtype", [F64, torch.complex128], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [((2, 3, 2), (2, 1, 3)), ((3,), (2,))], ids=str)
def test_gradients(inputs, outputs, dtype):
    factors = factors_of(inputs, outputs, dtype)
    x = torch.randn(2, math.prod(inputs), dtype=dtype)
    given = tuple(tensor.requires_grad_() for tensor in (x, *factors))

    def product(x, *factors):
        return monarch_product(x, factors)

    assert torch.autograd.gradcheck(product, given)
    assert torch.autograd.gradgradcheck(product, given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    torch.manual_seed(0)
    layer = MonarchProduct((4, 8, 2), dtype=dtype)
    x = torch.randn(5, 64, dtype=dtype)
    y = layer(x)
    assert y.dtype == dtype
    exact = copy.deepcopy(layer).double()(x.double())
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    # One rounding a factor against a dense product's one.
    assert (y - exact).abs().max() <= 3 * (plain - exact).abs().max()
    y.float().square().sum().backward()
    gradients = gradients_of(layer)
    assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in gradients)


def test_autocast_takes_half_products_of_full_weights():
    layer, x = MonarchProduct((4, 8, 2)), torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=3e-2, atol=3e-2)
    y.float().sum().backward()
    assert {gradient.dtype for gradient in gradients_of(layer)} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        complex_factors = factors_of((2, 3), (2, 2), torch.complex64)
        rows = torch.randn(2, 6, dtype=torch.complex64)
        assert monarch_product(rows, complex_factors).dtype == torch.complex64


def test_compiled_whole():
    layer, x = MonarchProduct((4, 3, 2), (2, 2, 5)), torch.randn(5, 24)
    expected = layer(x)
    expected.square().sum().backward()
    gradients = gradients_of(layer)
    layer.zero_grad(set_to_none=True)
    got = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    got.square().sum().backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients_of(layer), gradients)


def test_meta_device_and_state_dict():
    layer = MonarchProduct((4, 3), dtype=torch.bfloat16, device="meta")
    assert layer(torch.empty(2, 12, dtype=torch.bfloat16, device="meta")).shape == (2, 12)
    layer.to_empty(device="cpu")
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    other = MonarchProduct((4, 3), dtype=torch.bfloat16)
    torch.testing.assert_close(dict(layer.state_dict()), dict(other.state_dict()))
    fresh = MonarchProduct((4, 3), dtype=torch.bfloat16)
    fresh.load_state_dict(layer.state_dict())
    x = torch.randn(2, 12).bfloat16()
    assert torch.equal(fresh(x), layer(x))


FACTORS = factors_of((3, 4), (5, 2))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: MonarchProduct(()), ValueError, "sizes: expected at least one axis"),
        (lambda: MonarchProduct((4, 0)), ValueError, r"sizes\[1\]: expected an integer ≥ 1, got 0"),
        (lambda: MonarchProduct((4, 2.0)), TypeError, r"sizes\[1\]: expected an integer"),
        (lambda: MonarchProduct(8), TypeError, "sizes: expected a list of integers, got 8"),
        (lambda: MonarchProduct((4, 4), (16,)), ValueError, r"out_sizes: expected 2 axes"),
        (lambda: MonarchProduct((4,), bias=1), TypeError, "bias: expected True or False"),
        (lambda: MonarchProduct((4,), dtype=torch.int8), ValueError, "dtype: expected a float"),
        (lambda: monarch_product(torch.ones(3, 12), FACTORS), ValueError, "x: expected torch.flo"),
        (lambda: monarch_product([1.0] * 12, FACTORS), TypeError, "x: expected a tensor, got list"),
        (
            lambda: monarch_product(torch.ones(3, 11, dtype=F64), FACTORS),
            ValueError,
            r"x: expected \(..., 12\), the product of the factors' input axes",
        ),
        (lambda: product_to_dense([]), ValueError, "factors: expected at least one"),
        (lambda: product_to_dense(FACTORS[0]), TypeError, "factors: expected a list of tensors"),
        (lambda: product_to_dense([1]), TypeError, r"factors\[0\]: expected a tensor, got int"),
        (
            lambda: product_to_dense([FACTORS[0], FACTORS[1].float()]),
            ValueError,
            r"factors\[1\]: expected torch.float64 on cpu",
        ),
        (lambda: product_to_dense([FACTORS[0][0]]), ValueError, r"factors\[0\]: expected \(blocks"),
        (lambda: product_to_dense([FACTORS[0].long()]), ValueError, "expected a floating-point"),
        (
            lambda: product_to_dense(FACTORS[::-1]),
            ValueError,
            r"factors\[0\]: expected \(4, 2, 3\), one block for each value of the other axes",
        ),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
