"""The feed-forward is the one that the papers write, and its gradients are those of that."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ropewalk.kernels.gated_mlp import ACTIVATIONS, gated_activation, gated_mlp
from ropewalk.kernels.gated_mlp.reference import activate as tiles

FLOATS = [torch.float64, torch.float32]
EXACTNESS = {torch.float64: 1e-12, torch.float32: 2e-5}


def and_gradients(y, leaves, direction):
    return [y.detach(), *torch.autograd.grad(y, leaves, direction.to(y))]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_gradients(make_case, activation, gated, dtype):
    case = make_case(gated=gated).to(dtype=dtype)
    direction = torch.randn(2, 5, 3)
    found = gated_mlp(*case.given, activation=activation, gated=gated, backend="reference")
    truth = case.truth(activation, gated)
    for ours, exact in zip(
        and_gradients(found, case.leaves, direction),
        and_gradients(truth, case.leaves, direction),
        strict=True,
    ):
        assert ours.dtype == dtype
        torch.testing.assert_close(
            ours.double(), exact.double(), rtol=0, atol=EXACTNESS[dtype] * (1 + exact.abs().max())
        )


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_the_activation_alone(activation_oracle, activation, dtype, backend):
    projected = (torch.randn(3, 4, 10, dtype=dtype) * 3).requires_grad_()
    direction = torch.randn(3, 4, 5, dtype=dtype)
    found = gated_activation(projected, activation=activation, backend=backend)
    truth = activation_oracle(projected, activation, True)
    assert found.shape == (3, 4, 5)
    for ours, exact in zip(
        and_gradients(found, [projected], direction),
        and_gradients(truth, [projected], direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact.to(dtype), rtol=1e-5, atol=10 * EXACTNESS[dtype])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_sizes(make_case, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    batch = data.draw(st.sampled_from([(), (1,), (0,), (3, 0), (1, 1), (2, 3), (4,)]))
    gated, activation = draw(0, 1) == 1, data.draw(st.sampled_from(ACTIVATIONS))
    case = make_case(
        batch=batch, dim=draw(1, 9), hidden=draw(1, 9), out=draw(1, 9), gated=gated,
        bias=draw(0, 1) == 1,
    ).to(dtype=torch.float64)  # fmt: skip
    backend = data.draw(st.sampled_from(["auto", "reference"]))
    found = gated_mlp(*case.given, activation=activation, gated=gated, backend=backend)
    truth = case.truth(activation, gated)
    assert found.shape == truth.shape
    direction = torch.randn(truth.shape)
    for ours, exact in zip(
        and_gradients(found, case.leaves, direction),
        and_gradients(truth, case.leaves, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-11)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tiles_are_invisible(make_case, monkeypatch, gated, dtype):
    case = make_case(batch=(23,), gated=gated).to(dtype=dtype)
    found = []
    for elements in (2**16, 3 * 7, 1):
        monkeypatch.setattr(tiles, "TILE", elements)
        y = gated_mlp(*case.given, gated=gated, backend="reference")
        found.append(and_gradients(y, case.leaves, torch.ones(23, 3)))
    for other in found[1:]:  # vectors end elsewhere, with another way to take an exponential
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_exact_as_torchs(make_case, as_exact_as, activation, gated, dtype):
    case = make_case(batch=(64,), dim=32, hidden=48, out=16, gated=gated).to(dtype=dtype)
    direction = torch.randn(64, 16).to(dtype)

    def plain():
        z = functional.linear(case.x, case.weight_in, case.bias_in)
        gate, *up = z.chunk(2, -1) if gated else (z,)
        a = {
            "silu": functional.silu,
            "gelu": functional.gelu,
            "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
            "sigmoid": torch.sigmoid,
            "relu": functional.relu,
            "identity": lambda z: z,
        }[activation](gate)
        return functional.linear(a * up[0] if up else a, case.weight_out, case.bias_out)

    ours = gated_mlp(*case.given, activation=activation, gated=gated, backend="reference")
    wide = case.to(dtype=torch.float64)
    for values in zip(
        and_gradients(plain(), case.leaves, direction),
        and_gradients(ours, case.leaves, direction),
        and_gradients(wide.truth(activation, gated), wide.leaves, direction),
        strict=True,
    ):
        as_exact_as(*values)


def test_swiglu_is_what_llama_computes(make_case):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=6, intermediate_size=10, num_attention_heads=1)
    mlp, x = llama.LlamaMLP(config), torch.randn(4, 6)
    weight_in = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
    torch.testing.assert_close(gated_mlp(x, weight_in, mlp.down_proj.weight), mlp(x))


def test_a_bilinear_form_has_the_symmetry_of_one():
    x = torch.randn(3, 10, dtype=torch.float64)
    swapped = torch.cat((x[:, 5:], x[:, :5]), 1)
    torch.testing.assert_close(
        gated_activation(x, activation="identity"), gated_activation(swapped, activation="identity")
    )


def layouts(x):
    """The same numbers, differently in memory."""
    wide = torch.zeros(*x.shape[:-1], 3 * x.shape[-1], dtype=x.dtype)
    wide[..., 1::3] = x
    return {
        "every third": wide[..., 1::3],
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "columns first": x.mT.contiguous().mT,
        "part of a row": torch.cat((x, x), -1)[..., : x.shape[-1]],
    }


@pytest.mark.parametrize("layout", ["every third", "transposed", "columns first", "part of a row"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_layouts(make_case, layout, backend):
    case = make_case(dim=6)
    x = layouts(case.x.detach())[layout]
    assert not x.is_contiguous()
    found = gated_mlp(x, *case.given[1:], backend=backend)
    torch.testing.assert_close(found, gated_mlp(*case.given))
    assert found.is_contiguous()
    projected = torch.randn(3, 4, 10)
    leaf = layouts(projected)[layout].requires_grad_()
    y = gated_activation(leaf, backend=backend)
    torch.testing.assert_close(y, gated_activation(projected))
    # A gradient that is expanded, and one whose rows lie apart.
    for grad in (torch.ones(()).expand_as(y), torch.randn(3, 4, 10)[..., ::2]):
        same = projected.clone().requires_grad_()
        torch.testing.assert_close(
            torch.autograd.grad(y, leaf, grad, retain_graph=True),
            torch.autograd.grad(gated_activation(same), same, grad.contiguous()),
        )


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "sigmoid"])
def test_far_values_are_finite_and_nan_stays(activation):
    projected = torch.tensor([[-1e4, 1e4, 0.0, torch.nan, 1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    y = gated_activation(projected, activation=activation, backend="reference")
    assert y[:, :3].isfinite().all()
    assert y[0, 3].isnan()
    (grad,) = torch.autograd.grad(y[:, :3].sum(), projected)
    assert grad[:, [0, 1, 2, 4, 5, 6]].isfinite().all()
