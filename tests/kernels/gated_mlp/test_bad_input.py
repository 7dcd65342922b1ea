"""What feed-forwards refuse, in words that say how to mend it."""

import pytest
import torch

from ropewalk.kernels.gated_mlp import gated_activation, gated_mlp

X, IN, OUT = torch.randn(2, 6), torch.randn(10, 6), torch.randn(3, 5)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
        ({"weight_out": None}, TypeError, "weight_out: expected a tensor, got NoneType"),
        ({"bias_in": 1.0}, TypeError, "bias_in: expected a tensor or None, got float"),
        ({"x": torch.ones(2, 6, dtype=torch.int64)}, ValueError, r"int64; use \.float\(\)"),
        ({"x": X.to(torch.complex64)}, ValueError, r"x: expected float16.*complex64"),
        ({"weight_in": IN.double()}, ValueError, r"weight_in: expected torch.float32.*\.to\(x\)"),
        ({"bias_out": torch.randn(3).half()}, ValueError, r"bias_out: expected torch.float32"),
        ({"weight_out": OUT.to("meta")}, ValueError, "weight_out: expected .* on cpu as x is"),
        ({"x": torch.randn(2, 7)}, ValueError, r"x: expected \(\.\.\., 6\).*got \(2, 7\)"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x: expected \(\.\.\., 6\).*got \(\)"),
        ({"weight_in": IN[0]}, ValueError, r"weight_in: expected \(2·hidden, dim\)"),
        ({"weight_out": torch.randn(0, 5)}, ValueError, "none of them 0"),
        ({"weight_in": IN[:5]}, ValueError, r"\(2·5, dim\), gate above up.*pass gated=False"),
        ({"gated": False}, ValueError, r"expected \(5, dim\).*got \(10, 6\); pass gated=True"),
        ({"gated": 1}, TypeError, "gated: expected True or False, got int"),
        ({"bias_in": torch.randn(5)}, ValueError, r"bias_in: expected \(10,\), got \(5,\)"),
        ({"bias_out": torch.randn(5)}, ValueError, r"bias_out: expected \(3,\), got \(5,\)"),
        ({"activation": "swish"}, ValueError, "silu, gelu, gelu_tanh, sigmoid, relu, identity"),
        ({"backend": "cuda"}, ValueError, "auto, reference, triton, got 'cuda'"),
    ],
)
def test_refused(change, error, words):
    given = {"x": X, "weight_in": IN, "weight_out": OUT} | change
    with pytest.raises(error, match=words):
        gated_mlp(**given)


@pytest.mark.parametrize(
    ("projected", "error", "words"),
    [
        ([1.0, 2.0], TypeError, "projected: expected a tensor, got list"),
        (torch.ones(2, 4, dtype=torch.int32), ValueError, r"int32; use \.float\(\)"),
        (torch.randn(2, 5), ValueError, r"expected \(\.\.\., 2·hidden\).*got \(2, 5\)"),
        (torch.randn(2, 0), ValueError, r"got \(2, 0\)"),
        (torch.tensor(1.0), ValueError, r"got \(\)"),
    ],
    ids=["list", "integers", "odd", "empty", "scalar"],
)
def test_refused_by_the_activation(projected, error, words):
    with pytest.raises(error, match=words):
        gated_activation(projected)


@pytest.mark.parametrize("options", [{"activation": "tanh"}, {"backend": "numba"}], ids=str)
def test_unknown_names(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected one of"):
        gated_activation(X, **options)


def test_triton_refuses_where_it_cannot_run():
    with pytest.raises(ValueError, match=r"backend 'triton' cannot run: .*(float64|CUDA device)"):
        gated_mlp(X.double(), IN.double(), OUT.double(), backend="triton")
