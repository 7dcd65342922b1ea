"""Exact constructions against torch's transforms and scipy's matrices."""

import math

import pytest
import scipy.linalg
import torch

from ropewalk.blocks.monarch import MonarchLinear
from ropewalk.blocks.monarch.constructions import dft, hadamard
from ropewalk.blocks.monarch.convolutions import circulant, toeplitz

F64, C128 = torch.float64, torch.complex128
LENGTHS = [
    (1, None), (4, None), (6, None), (7, (7,)), (12, None), (12, (2, 3, 2)), (30, (5, 2, 3)),
    (16, (2, 2, 2, 2)), (60, (1, 6, 10)), (1000, None), (1024, None),
]  # fmt: skip


def assert_equal_to_rounding(actual, expected):
    """1e-12 of the greatest entry; never trivially, because nothing here is all zero."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize(("n", "sizes"), LENGTHS, ids=str)
def test_fourier_transform(n, sizes):
    x = torch.randn(2, 3, n, dtype=C128)
    assert_equal_to_rounding(dft(n, sizes, dtype=C128).apply(x), torch.fft.fft(x))
    assert_equal_to_rounding(dft(n, sizes, inverse=True, dtype=C128).apply(x), torch.fft.ifft(x))
    assert_equal_to_rounding(dft(n, sizes, dtype=C128).apply(x.real), torch.fft.fft(x.real))


def test_large_angles_keep_their_digits():
    """Angles of up to 2π·n would lose log10(n) digits of them; roots of unity are periodic."""
    n = 1021
    power = torch.outer(torch.arange(n), torch.arange(n)) % n
    roots = torch.polar(torch.ones(n, dtype=F64), -2 * math.pi * torch.arange(n).double() / n)
    (factor,) = dft(n, (n,), dtype=C128).factors
    assert (factor[0] - roots[power]).abs().max() < 4e-15


@pytest.mark.parametrize(("n", "sizes"), [(12, None), (24, (2, 3, 4))], ids=str)
def test_fourier_matrix(n, sizes):
    power = torch.outer(torch.arange(n), torch.arange(n)) % n
    matrix = torch.polar(torch.ones(n, n, dtype=F64), -2 * math.pi * power.double() / n)
    assert_equal_to_rounding(dft(n, sizes, dtype=C128).to_dense(), matrix)


@pytest.mark.parametrize(
    ("n", "sizes", "parameters"),
    [(64, None, 64 * 16), (1024, None, 1024 * 64), (1000, (10, 10, 10), 1000 * 30),
     (1024, (2,) * 10, 1024 * 20), (97 * 2, None, 194 * 99)],
    ids=str,
)  # fmt: skip
def test_parameters_are_the_sum_of_the_axes_times_the_length(n, sizes, parameters):
    construction = dft(n, sizes)
    assert construction.parameters == parameters
    assert construction.parameters == sum(factor.numel() for factor in construction.factors)
    assert construction.parameters < 0.52 * n**2


@pytest.mark.parametrize("n", [9, 36, 100, 1024, 65536])
def test_squares_have_order_n_to_the_three_halves(n):
    assert dft(n).parameters == 2 * n**1.5


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(1, None), (2, None), (8, None), (8, (2, 2, 2)), (32, (4, 2, 4)), (64, (1, 64)), (256, None)],
    ids=str,
)
def test_hadamard_matrix(n, sizes):
    construction = hadamard(n, sizes, dtype=F64)
    expected = torch.from_numpy(scipy.linalg.hadamard(n)).double()
    assert torch.equal(construction.to_dense(), expected)
    x = torch.randn(3, n, dtype=F64)
    assert_equal_to_rounding(construction.apply(x), x @ expected.mT)


def test_the_fast_hadamard_transform_has_two_n_log_n_signs():
    assert hadamard(256, (2,) * 8).parameters == 2 * 256 * 8
    assert hadamard(256).parameters == 2 * 256 * 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_signs_are_exact_in_every_precision(dtype):
    matrix = hadamard(64, dtype=dtype).to_dense()
    assert matrix.dtype == dtype
    assert torch.equal(matrix.int(), torch.from_numpy(scipy.linalg.hadamard(64)).int())


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (4, 1), (5, 5), (6, 11), (13, 4)], ids=str)
@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_toeplitz_matrix(sizes, dtype):
    column, row = (torch.randn(size, dtype=dtype) for size in sizes)
    construction = toeplitz(column, row)
    expected = torch.from_numpy(scipy.linalg.toeplitz(column.numpy(), row.numpy()))
    assert_equal_to_rounding(construction.to_dense(), expected)
    x = torch.randn(2, sizes[1], dtype=dtype)
    assert_equal_to_rounding(construction.apply(x), x @ expected.mT)
    assert construction.apply(x).dtype == dtype


def test_a_toeplitz_matrix_without_a_row_is_hermitian():
    column = torch.randn(6, dtype=C128)
    column[0] = 1.0
    expected = torch.from_numpy(scipy.linalg.toeplitz(column.numpy()))
    assert_equal_to_rounding(toeplitz(column).to_dense(), expected)
    assert_equal_to_rounding(expected, expected.mH)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 97, 194, 256])
@pytest.mark.parametrize("dtype", [F64, C128], ids=str)
def test_circulant_matrix(n, dtype):
    column = torch.randn(n, dtype=dtype)
    construction = circulant(column)
    expected = torch.from_numpy(scipy.linalg.circulant(column.numpy()))
    assert_equal_to_rounding(construction.to_dense(), expected)


def test_convolutions_have_fewer_parameters_than_the_matrix():
    column = torch.randn(4096)
    assert circulant(column).parameters == 4 * 4096**1.5 < 4096**2 / 15
    assert circulant(column[:4093]).parameters < 4093**2 / 5  # a prime
    rectangle = toeplitz(column, column[:1000])
    assert rectangle.parameters == sum(factor.numel() for factor in rectangle.factors)
    assert rectangle.parameters < 4096 * 1000 / 2


def test_a_real_matrix_keeps_the_imaginary_part_of_the_input():
    column, row = torch.randn(2, 7, dtype=F64)
    x = torch.randn(3, 7, dtype=C128)
    expected = torch.from_numpy(scipy.linalg.toeplitz(column.numpy(), row.numpy()))
    assert_equal_to_rounding(toeplitz(column, row).apply(x), x @ expected.mT.to(C128))


def test_convolutions_learn_their_filter():
    column, row, x = (torch.randn(size, dtype=F64, requires_grad=True) for size in (4, 3, 3))
    assert torch.autograd.gradcheck(
        lambda *given: toeplitz(*given[:2]).apply(given[2]), (column, row, x)
    )
    assert torch.autograd.gradcheck(lambda given: circulant(given).to_dense(), (column,))


def test_two_factors_start_a_layer():
    construction = hadamard(64)
    layer = MonarchLinear.from_factors(*construction.factors)
    x = torch.randn(3, 64)
    y = layer(x[:, construction.input_order])[:, construction.output_order]
    torch.testing.assert_close(y, construction.apply(x))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: dft(7), ValueError, r"got the prime 7; pad .* sizes=\(7,\)"),
        (lambda: dft(0), ValueError, "n: expected an integer ≥ 1"),
        (lambda: dft(8.0), TypeError, "n: expected an integer"),
        (lambda: dft(8, (2, 3)), ValueError, "product is n = 8, got .* with the product 6"),
        (lambda: dft(8, (2, "4")), TypeError, r"sizes\[1\]: expected an integer"),
        (lambda: dft(8, (-2, -4)), ValueError, r"sizes\[0\]: expected an integer ≥ 1"),
        (lambda: dft(8, dtype=torch.float32), ValueError, "dtype: expected torch.complex64 or"),
        (lambda: hadamard(12), ValueError, "n: expected a power of two, got 12; pad to 16"),
        (lambda: hadamard(8, dtype=torch.int8), ValueError, "dtype: expected a floating-point or"),
        (lambda: dft(8).apply(torch.ones(9)), ValueError, r"x: expected \(..., 8\)"),
        (lambda: dft(8).apply(torch.ones(8, dtype=F64)), ValueError, "or torch.float32, got torch"),
        (lambda: dft(8).apply([1.0] * 8), TypeError, "x: expected a tensor"),
        (lambda: toeplitz(torch.ones(2, 2)), ValueError, r"column: expected \(n,\)"),
        (lambda: toeplitz(torch.ones(0)), ValueError, "column: expected"),
        (lambda: toeplitz(torch.ones(3).half()), ValueError, "column: expected float32, .*float()"),
        (lambda: toeplitz(torch.ones(3), torch.ones(3).double()), ValueError, "row: expected"),
        (lambda: toeplitz([1.0]), TypeError, "column: expected a tensor, got list"),
        (lambda: circulant(torch.ones(3).long()), ValueError, "column: expected float32"),
        (
            lambda: toeplitz(torch.ones(3), torch.ones(2)).apply(torch.ones(3)),
            ValueError,
            r"x: expected \(..., 2\)",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
