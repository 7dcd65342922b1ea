"""What a scan refuses, before any work, and in words that mend it."""

import pytest
import torch

from ropewalk.kernels.linear_scan import linear_scan
from ropewalk.kernels.linear_scan.backend import implementation

A, B, X = torch.rand(2, 5, 3), torch.rand(2, 5, 3), torch.rand(2, 3)


PACKED = (A[:1], B[:1])


def packed(*numbers, dtype=torch.int64):
    return {"cu_seqlens": torch.tensor(numbers, dtype=dtype)}


CASES = [
    ((A, [1.0]), {}, TypeError, r"b: expected a tensor, got list"),
    ((A, B.int()), {}, ValueError, r"b: expected a floating.*got torch\.int32; use \.float\(\)"),
    ((A.double(), B), {}, ValueError, r"a: expected torch\.float32 on cpu.*use \.to\(b\)"),
    ((A, B.to(torch.complex64)), {}, ValueError, r"a: expected torch\.complex64"),
    (
        (A.to(torch.complex64), B),
        {},
        ValueError,
        r"make them all complex: b\.to\(torch\.complex64\)",
    ),
    ((A, B, X.double()), {}, ValueError, r"initial_state: expected torch\.float32"),
    ((A[0], B[0]), {}, ValueError, r"a \(batch, time, channels\).*a \(5, 3\) and b \(5, 3\)"),
    ((A[..., :2], B), {}, ValueError, r"got a \(2, 5, 2\) and b \(2, 5, 3\)"),
    ((A[..., :1], B), {}, ValueError, r"got a \(2, 5, 1\) and b"),
    ((torch.rand(2, 5, 3, 2), B), {}, ValueError, r"got a \(2, 5, 3, 2\)"),
    ((torch.rand(2, 5, 2, 2, 3), torch.rand(2, 5, 3, 3)), {}, ValueError, r"time, 2, channels\)"),
    ((A[:, :4], B), {}, ValueError, r"a: expected time 5 as b has, or 1, got 4"),
    ((torch.rand(3, 5, 3), B), {}, ValueError, r"a: expected batch 2 as b has, or 1, got 3"),
    ((A, B, X[:1]), {}, ValueError, r"expected \(2, 3\), one of each row of b, got \(1, 3\)"),
    ((A, B), {"reverse": 1}, TypeError, r"reverse: expected True or False, got int"),
    ((A, B), {"backend": "cuda"}, ValueError, r"one of auto, reference, numba, triton, got 'cuda'"),
    ((A, B), {"backend": "triton"}, ValueError, r"'triton' cannot run: expected tensors on a CUDA"),
    ((A, B), packed(0, 5), ValueError, r"in a batch of 1, got batch 2"),
    (PACKED, {"cu_seqlens": [0, 5]}, TypeError, r"cu_seqlens must be a tensor, got list"),
    (PACKED, packed(0, 5, dtype=torch.float32), TypeError, r"must be int32 or int64"),
    (PACKED, packed(0), ValueError, r"\(sequences \+ 1,\)"),
    (PACKED, packed(1, 5), ValueError, r"must begin with 0, got 1"),
    (PACKED, packed(0, 4), ValueError, r"end at the number of tokens, 5, got 4"),
    (PACKED, packed(0, 6, 5), ValueError, r"must not decrease, got 6 followed by 5"),
    (
        (*PACKED, X),
        packed(0, 5),
        ValueError,
        r"\(1, 3\), one of each packed sequence, got \(2, 3\)",
    ),
]


@pytest.mark.parametrize(("given", "options", "error", "message"), CASES, ids=range(len(CASES)))
def test_refused(given, options, error, message):
    with pytest.raises(error, match=message):
        linear_scan(*given, **options)


def test_lengths_are_read_in_compiled_code():
    compiled = torch.compile(
        lambda a, b, cu: linear_scan(a, b, cu_seqlens=cu), fullgraph=True, backend="eager"
    )
    compiled(A[:1], B[:1], torch.tensor([0, 2, 5]))
    with pytest.raises(ValueError, match="end at the number of tokens, 5, got 3"):
        compiled(A[:1], B[:1], torch.tensor([0, 2, 3]))


def test_numba_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="backend 'numba' cannot run: expected tensors on a CPU"):
        implementation(A.to("meta"), "numba")
