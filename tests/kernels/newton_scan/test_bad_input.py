"""What a scan refuses, before any work, and in words that mend it."""

import pytest
import torch

from ropewalk.kernels.newton_scan import newton_scan
from ropewalk.kernels.newton_scan.backend import implementation

X, W, H = torch.rand(2, 5, 3, 4), torch.rand(4, 4), torch.rand(2, 4)
ONE = X[:1]


def packed(*numbers, dtype=torch.int64):
    return {"cu_seqlens": torch.tensor(numbers, dtype=dtype)}


CASES = [
    ((X, W), {"cell": "elman"}, ValueError, r"cell: expected one of tanh, gru, lstm, got 'elman'"),
    (
        (X, W),
        {"cell": ["gru"]},
        ValueError,
        r"cell: expected one of tanh, gru, lstm, got \['gru'\]",
    ),
    ((X.to(torch.complex64), W), {}, ValueError, r"got torch\.complex64; use \.real"),
    ((X, [1.0]), {}, TypeError, r"weights: expected a tensor, got list"),
    ((X.int(), W), {}, ValueError, r"inputs: expected a floating-point dtype.*use \.float\(\)"),
    ((X, W.double()), {}, ValueError, r"weights: expected torch\.float32 with such inputs, got"),
    ((X.half(), W.double()), {}, ValueError, r"expected torch\.float16 or torch\.float32 with"),
    ((X, W, H.half()), {}, ValueError, r"initial_state: expected torch\.float32 with such inputs"),
    ((X, W.to("meta")), {}, ValueError, r"weights: expected it on cpu.*got meta"),
    ((X.flatten(2), W), {}, ValueError, r"gates r, z, n of 'gru', got \(2, 5, 12\).*unflatten"),
    ((X[:, :, :2], W), {}, ValueError, r"inputs: expected \(batch, time, 3, channels\)"),
    ((X, W[:3]), {}, ValueError, r"expected \(4, 4\), the rows w_r, w_z, w_n, b_n of 'gru'"),
    ((X, W[:, :3]), {}, ValueError, r"weights: expected \(4, 4\).*got \(4, 3\)"),
    ((X, W, H[:1]), {}, ValueError, r"initial_state: expected \(2, 4\), got \(1, 4\)"),
    ((X, torch.rand(5, 4), H), {"cell": "lstm"}, ValueError, r"\(2, 2, 4\) with \[c, h\], got"),
    ((X, W), {"algorithm": "deer"}, ValueError, r"one of auto, newton, sequential, got 'deer'"),
    ((X, W), {"window": 0}, ValueError, r"window: expected an integer ≥ 1 or None, got 0"),
    ((X, W), {"window": 2.0}, TypeError, r"window: expected an integer ≥ 1 or None, got 2\.0"),
    ((X, W), {"max_iterations": 0}, ValueError, r"max_iterations: expected an integer ≥ 1"),
    ((X, W), {"max_iterations": True}, TypeError, r"max_iterations: expected an integer ≥ 1"),
    ((X, W), {"tolerance": 0.0}, ValueError, r"tolerance: expected a finite number > 0"),
    ((X, W), {"tolerance": float("nan")}, ValueError, r"tolerance: expected a finite number > 0"),
    ((X, W), {"tolerance": "small"}, TypeError, r"tolerance: expected a number > 0 or None"),
    ((X, W), {"backend": "cuda"}, ValueError, r"one of auto, reference, numba, triton, got 'cuda'"),
    ((X, W), {"backend": "triton"}, ValueError, r"'triton' cannot run: expected tensors on a CUDA"),
    ((X, W), packed(0, 5), ValueError, r"in a batch of 1, got batch 2"),
    ((ONE, W), {"cu_seqlens": [0, 5]}, TypeError, r"cu_seqlens must be a tensor, got list"),
    ((ONE, W), packed(0, 5, dtype=torch.float32), TypeError, r"must be int32 or int64"),
    ((ONE, W), packed(1, 5), ValueError, r"must begin with 0, got 1"),
    ((ONE, W), packed(0, 4), ValueError, r"end at the number of tokens, 5, got 4"),
    ((ONE, W), packed(0, 6, 5), ValueError, r"must not decrease, got 6 followed by 5"),
    ((ONE, W, H), packed(0, 5), ValueError, r"initial_state: expected \(1, 4\), got \(2, 4\)"),
]


@pytest.mark.parametrize(("given", "options", "error", "message"), CASES, ids=range(len(CASES)))
def test_refused(given, options, error, message):
    with pytest.raises(error, match=message):
        newton_scan(*given, **{"cell": "gru", **options})


def test_numba_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="backend 'numba' cannot run: expected tensors on a CPU"):
        implementation(X.to("meta"), "numba")
