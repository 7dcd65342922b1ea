"""On a device: half precision as exact as torch's own feed-forward, and sizes past 2³¹."""

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")

from ropewalk.kernels.gated_mlp import ACTIVATIONS, gated_mlp, triton
from ropewalk.kernels.gated_mlp.problem import Form

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_as_exact_as_torch(activation, gated, dtype, make_case, as_exact_as):
    case = make_case(batch=(3, 257), dim=384, hidden=1026, out=384, gated=gated)
    case = case.to(dtype=dtype, device="cuda")
    y_grad = torch.randn(3, 257, 384, device="cuda").to(dtype)

    def plain(given):
        function = {
            "silu": functional.silu,
            "gelu": functional.gelu,
            "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
            "sigmoid": torch.sigmoid,
            "relu": functional.relu,
            "identity": lambda z: z,
        }[activation]
        z = functional.linear(given.x, given.weight_in, given.bias_in)
        gate, *up = z.chunk(2, -1) if gated else (z,)
        a = function(gate) * up[0] if up else function(gate)
        return functional.linear(a, given.weight_out, given.bias_out)

    def and_gradients(y, given):
        return [y, *torch.autograd.grad(y, given.leaves, y_grad.to(y))]

    wide = case.to(dtype=torch.float64)
    ours = gated_mlp(*case.given, activation=activation, gated=gated, backend="triton")
    for values in zip(
        and_gradients(plain(case), case),
        and_gradients(ours, case),
        and_gradients(wide.truth(activation, gated), wide),
        strict=True,
    ):
        as_exact_as(*values)


def test_more_numbers_than_32_bits_count(as_exact_as):
    rows, hidden, form = 2**21, 1536, Form("silu", True)
    projected = torch.zeros(rows, 2 * hidden, dtype=torch.bfloat16, device="cuda")
    projected[-3:] = torch.randn(3, 2 * hidden, device="cuda")
    y = triton.forward(projected, form)
    assert not y[:-3].any()
    torch.testing.assert_close(y[-3:], triton.forward(projected[-3:], form), rtol=0, atol=0)
    grad, again = triton.backward(projected, y, form, True)
    small, _ = triton.backward(projected[-3:], y[-3:], form, False)
    torch.testing.assert_close(grad[-3:], small, rtol=0, atol=0)
    torch.testing.assert_close(again, y, rtol=0, atol=0)


def test_auto_is_triton_on_a_device(make_case):
    case = make_case(batch=(64,), dim=64, hidden=96, out=64).to(dtype=torch.bfloat16, device="cuda")
    found = [gated_mlp(*case.given, backend=backend) for backend in ("auto", "triton")]
    torch.testing.assert_close(*found, rtol=0, atol=0)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        cast = gated_mlp(*case.to(dtype=torch.float32).given)
    torch.testing.assert_close(cast, found[0], rtol=0, atol=0)
