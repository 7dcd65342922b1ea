"""Triton's kernels equal the equations: interpreted and on a device, in float32."""

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.gated_mlp import ACTIVATIONS, gated_activation, gated_mlp, reference, triton
from ropewalk.kernels.gated_mlp.problem import Form
from ropewalk.kernels.gated_mlp.triton import launch
from ropewalk.kernels.gated_mlp.triton.configurations import Configuration

pytestmark = pytest.mark.usefixtures("uninitialised")
KINDS = pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])


@pytest.fixture
def check(kernel_device, as_exact_as, activation_oracle):
    """`check(projected, grad, form)`: both directions as exact as torch's own steps."""

    def checked(projected, grad, form, floor=1e-5):
        leaf = projected.double().requires_grad_()
        value = activation_oracle(leaf, *form)
        (exact,) = torch.autograd.grad(value, leaf, grad.double())
        on = projected.to(kernel_device), grad.to(kernel_device)
        peers = reference.forward(projected, form), *reference.backward(projected, grad, form, True)
        found = triton.forward(on[0], form), *triton.backward(*on, form, True)
        alone, nothing = triton.backward(*on, form, False)
        assert nothing is None
        torch.testing.assert_close(alone, found[1], rtol=0, atol=0)
        for peer, ours, truth in zip(peers, found, (value, exact, value), strict=True):
            assert peer is not None
            assert ours is not None
            assert ours.dtype == projected.dtype
            assert ours.is_contiguous()
            as_exact_as(peer, ours, truth.detach(), floor=floor)

    return checked


@KINDS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(check, activation, gated):
    check(torch.randn(5, 7 * (1 + gated)) * 3, torch.randn(5, 7), Form(activation, gated))


@KINDS
@pytest.mark.parametrize("rows", [1, 2, 9])
@pytest.mark.parametrize("hidden", [1, 16, 130])
def test_sizes(check, rows, hidden, gated):
    form = Form("silu", gated)
    check(torch.randn(rows, hidden * (1 + gated)), torch.randn(rows, hidden), form)


@KINDS
def test_many_tiles_each_way(check, monkeypatch, gated):
    monkeypatch.setattr(launch, "configuration", lambda *_: Configuration(2, 4))
    check(torch.randn(5, 11 * (1 + gated)), torch.randn(5, 11), Form("gelu", gated))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(check, dtype, kernel_device):
    """The interpreter cuts bfloat16 off where a device rounds: up to its last digit."""
    cut_off = dtype == torch.bfloat16 and kernel_device.type == "cpu"
    for gated in (True, False):
        check(
            torch.randn(5, 7 * (1 + gated)).to(dtype), torch.randn(5, 7).to(dtype),
            Form("gelu_tanh", gated), floor=2**-7 if cut_off else 1e-5,
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_activation_is_rounded_once(activation_oracle, dtype):
    projected = torch.randn(50, 8, dtype=dtype, device="cuda")
    found = triton.forward(projected, Form("silu", True))
    exact = activation_oracle(projected, "silu", True)
    half_a_digit = torch.finfo(dtype).eps / 2 * 1.001
    assert ((found.double() - exact).abs() <= half_a_digit * exact.abs() + 4e-8).all()


def test_no_rows(kernel_device):
    for gated in (True, False):
        form, width = Form("silu", gated), 3 * (1 + gated)
        empty = torch.randn(0, width, device=kernel_device)
        assert triton.forward(empty, form).shape == (0, 3)
        grad, again = triton.backward(empty, empty[:, :3], form, True)
        assert grad.shape == (0, width)
        assert again is not None
        assert again.shape == (0, 3)


def test_rows_that_lie_apart_and_gradients_that_are_expanded(check):
    projected = torch.randn(6, 20)[::2, 3:13]
    assert projected.stride() == (40, 1)
    check(projected, torch.randn(1, 5).expand(3, 5), Form("silu", True))


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "sigmoid"])
def test_far_values_are_finite_and_nan_stays(kernel_device, activation):
    gate = torch.tensor([[-1e4, 1e4, -100.0, 100.0, 0.0, torch.nan]], device=kernel_device)
    form = Form(activation, True)
    projected = torch.cat((gate, torch.ones_like(gate)), 1)
    y = triton.forward(projected, form)
    grad, again = triton.backward(projected, torch.ones_like(gate), form, True)
    assert again is not None
    for found in (y, again, grad[:, :6], grad[:, 6:]):
        assert found[:, :5].isfinite().all()
        assert found[0, 5].isnan()


@KINDS
def test_the_public_functions(make_case, kernel_device, gated):
    """Through autograd, biases and layouts and all."""
    case = make_case(gated=gated).to(device=kernel_device)
    direction = torch.randn(2, 5, 3).to(kernel_device)
    found = gated_mlp(*case.given, gated=gated, backend="triton")
    truth = case.truth("silu", gated)
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-4)
    for ours, exact in zip(
        torch.autograd.grad(found, case.leaves, direction),
        torch.autograd.grad(truth, case.leaves, direction.double()),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-4)
    projected = torch.randn(3, 10, 4, device=kernel_device).mT.requires_grad_()
    y = gated_activation(projected, backend="triton")
    torch.testing.assert_close(y, gated_activation(projected, backend="reference"))
    (grad,) = torch.autograd.grad(y.sum(), projected)
    again = gated_activation(projected, backend="reference")
    torch.testing.assert_close(grad, torch.autograd.grad(again.sum(), projected)[0])


def test_results_repeat(kernel_device):
    projected = torch.randn(9, 14, device=kernel_device)
    form = Form("silu", True)
    first, second = (triton.backward(projected, projected[:, :7], form, True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
