"""Which implementation runs, and what is said where none can."""

import pytest
import torch

from ropewalk.kernels import backends
from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.linear_cross_entropy import backend, linear_cross_entropy, reference


def test_auto_is_the_reference_on_a_cpu():
    assert backend.implementation(torch.zeros(1), "auto") is reference


@pytest.mark.skipif(interpreted(), reason="the interpreter takes tensors on a CPU")
def test_triton_on_a_cpu_is_refused_by_the_operator():
    with pytest.raises(ValueError, match="'triton' cannot run: expected tensors on a CUDA device"):
        linear_cross_entropy(
            torch.zeros(2, 4), torch.zeros(5, 4), torch.tensor([0, 1]), backend="triton"
        )


def test_reasons(monkeypatch):
    cuda = type("OnCuda", (), {"device": torch.device("cuda"), "dtype": torch.float64})()
    with pytest.raises(ValueError, match=r"got float64; use \.float\(\)"):
        backend.implementation(cuda, "triton")
    assert backend.implementation(cuda, "auto") is reference
    cuda.dtype = torch.bfloat16
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"triton is not installed; install ropewalk\[gpu\]"):
        backend.implementation(cuda, "triton")
    assert backend.implementation(cuda, "auto") is reference
