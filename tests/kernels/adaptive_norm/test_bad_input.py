"""What the chain refuses: the error names what was expected, what came and the way out."""

import re

import pytest
import torch

from ropewalk.kernels.adaptive_norm import adaptive_norm, gated_adaptive_norm, gated_residual

X, ROWS = torch.randn(2, 5, 8), torch.randn(2, 8)
GOOD = {"x": X, "branch": X, "gate": ROWS, "shift": ROWS, "scale": ROWS}
CU = torch.tensor([0, 2, 5])
PACKED = {**GOOD, "x": X[:1], "branch": X[:1], "cu_seqlens": CU}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"norm": "batch"}, ValueError, "norm: expected one of layer, rms, got 'batch'"),
        ({"backend": "cuda"}, ValueError, "backend: expected one of auto, reference, triton, got"),
        ({"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
        ({"x": X.long()}, TypeError, "x: expected float32, .* got torch.int64; cast it"),
        (
            {"x": X[0]},
            ValueError,
            "x: expected (batch, tokens, dim) .* got (5, 8); .flatten(1, -2)",
        ),
        ({"x": X[..., :0]}, ValueError, "a dim of at least 1, got (2, 5, 0)"),
        ({"branch": None}, TypeError, "branch: expected a tensor, got NoneType"),
        ({"branch": X[:, :4]}, ValueError, "branch: expected .* (2, 5, 8), got (2, 4, 8)"),
        ({"branch": X.half()}, ValueError, "branch: expected torch.float32 on cpu .* use .to(x)"),
        ({"branch": X.to("meta")}, ValueError, "branch: expected .* got torch.float32 on meta"),
        ({"gate": 1.0}, TypeError, "gate: expected a tensor, got float"),
        ({"gate": ROWS[0]}, ValueError, "gate: expected (2, 8), one row for each .* got (8,)"),
        ({"scale": ROWS[:, None]}, ValueError, "scale: expected (2, 8), .* got (2, 1, 8)"),
        ({"shift": torch.randn(3, 8)}, ValueError, "shift: expected (2, 8), .* got (3, 8)"),
        ({"shift": ROWS[:, :4]}, ValueError, "shift: expected (2, 8), .* or (1, 8), got (2, 4)"),
        ({"scale": ROWS.half()}, ValueError, "scale: expected torch.float32 .* got torch.float16"),
        ({"scale": ROWS.to("meta")}, ValueError, "scale: expected it on cpu, got meta; move it"),
        ({"weight": torch.ones(2, 8)}, ValueError, "weight: expected (8,), .* got (2, 8)"),
        ({"bias": torch.ones(7)}, ValueError, "bias: expected (8,), .* got (7,)"),
        ({"weight": 1}, TypeError, "weight: expected a tensor, got int"),
        ({"eps": -1e-6}, ValueError, "eps: expected a finite number of at least 0, got -1e-06"),
        ({"eps": float("inf")}, ValueError, "eps: expected a finite number"),
        ({"eps": "1e-6"}, TypeError, "eps: expected a number, got str"),
        ({"eps": True}, TypeError, "eps: expected a number, got bool"),
        ({"cu_seqlens": CU}, ValueError, "expected a batch of 1, .* got batch 2"),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x) if isinstance(x, dict) else x.__name__,
)
def test_bad_input(change, error, message):
    pattern = ".*".join(re.escape(part.strip()) for part in message.split(".*"))
    with pytest.raises(error, match=pattern):
        gated_adaptive_norm(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seqlens": CU.tolist()}, TypeError, "cu_seqlens must be a tensor, got list"),
        ({"cu_seqlens": CU.float()}, TypeError, "must be int32 or int64, got torch.float32"),
        ({"cu_seqlens": CU[:1]}, ValueError, "at least one sequence"),
        ({"cu_seqlens": CU - 1}, ValueError, "must begin with 0, got -1"),
        ({"cu_seqlens": CU + CU}, ValueError, "must end at the number of tokens, 5, got 10"),
        (
            {"cu_seqlens": torch.tensor([0, 6, 5])},
            ValueError,
            "must not decrease, got 6 followed by 5",
        ),
        ({"gate": torch.randn(3, 8)}, ValueError, "gate: expected (2, 8), one row for each sample"),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x) if isinstance(x, dict) else x.__name__,
)
def test_bad_packing(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        gated_adaptive_norm(**{**PACKED, **change})


def test_the_other_functions_check_too():
    with pytest.raises(ValueError, match="norm: expected one of layer, rms, got None"):
        adaptive_norm(X, norm=None)
    with pytest.raises(ValueError, match=r"shift: expected \(2, 8\)"):
        adaptive_norm(X, ROWS[:, :3])
    with pytest.raises(ValueError, match=r"gate: expected \(2, 8\)"):
        gated_residual(X, X, ROWS[:, :3])
    with pytest.raises(TypeError, match="branch: expected a tensor, got NoneType"):
        gated_residual(X, None, ROWS)


def test_triton_says_why_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"'triton' cannot run: .* CUDA device, got cpu; move"):
        gated_adaptive_norm(**GOOD, backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "True")
    double = {name: x.double() for name, x in GOOD.items()}
    with pytest.raises(ValueError, match=r"'triton' cannot run: .* got float64"):
        gated_adaptive_norm(**double, backend="triton")
