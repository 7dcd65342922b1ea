"""What the product refuses, in words that say how to mend it."""

import pytest
import torch

from ropewalk.kernels.monarch import monarch_matmul

X, RIGHT, LEFT = torch.randn(2, 12), torch.randn(3, 10, 4), torch.randn(2, 7, 15)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, "x: expected a tensor, got list"),
        ({"x": torch.ones(2, 12, dtype=torch.int64)}, ValueError, r"int64; use \.float\(\)"),
        ({"x": torch.randn(2, 11)}, ValueError, r"expected \(\.\.\., 12\).*got \(2, 11\).*pad"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x: expected \(\.\.\., 12\)"),
        ({"right": RIGHT.double()}, ValueError, r"right: expected torch.float32.*\.to\(x\)"),
        ({"left": LEFT.to("meta")}, ValueError, "left: expected .* on cpu as x is"),
        ({"right": RIGHT[0]}, ValueError, r"right: expected \(input_blocks.*got \(10, 4\)"),
        ({"left": LEFT[:, :, :14]}, ValueError, r"with one rank r, .* 14 = k·4.66667 columns"),
        ({"left": torch.randn(4, 7, 15)}, ValueError, "with one rank r"),
        ({"left": torch.randn(2, 0, 15)}, ValueError, "none of them 0"),
        ({"bias": torch.randn(12)}, ValueError, r"bias: expected \(14,\).*got \(12,\)"),
        ({"activation": "tanh"}, ValueError, "relu, gelu, gelu_tanh, silu, got 'tanh'"),
        ({"block_major_output": 1}, TypeError, "expected True or False, got int"),
        ({"backend": "cuda"}, ValueError, "auto, reference, triton, dense, got 'cuda'"),
    ],
)
def test_refused(change, error, words):
    given = {"x": X, "right": RIGHT, "left": LEFT} | change
    with pytest.raises(error, match=words):
        monarch_matmul(**given)


def test_a_rank_that_is_no_whole_number():
    with pytest.raises(ValueError, match=r"with one rank r.*3 = l·1\.5 rows of right"):
        monarch_matmul(torch.randn(2, 8), torch.randn(2, 3, 4), torch.randn(2, 5, 3))


def test_complex_numbers_have_no_activation():
    x, right, left = (t.to(torch.complex64) for t in (X, RIGHT, LEFT))
    with pytest.raises(ValueError, match="activation: expected None for complex"):
        monarch_matmul(x, right, left, activation="relu")


def test_triton_refuses_where_it_cannot_run():
    with pytest.raises(ValueError, match=r"backend 'triton' cannot run: .*(float64|CUDA device)"):
        monarch_matmul(X.double(), RIGHT.double(), LEFT.double(), backend="triton")
