"""Circulant and Toeplitz matrices, exactly, as products of two Monarch matrices.

Circulant: F⁻¹ diag(F c) F, with the Fourier transform of `constructions`. Toeplitz: rows and
columns of a circulant matrix that is large enough; pad, F, multiply, F⁻¹, cut. The multiplication
goes into the factor before it, so both are products of two Monarch matrices, between the
permutations that F carries.

Source: Dao et al., arXiv 2204.00595 §3.2, on convolutions; Golub and Van Loan, Matrix Computations
(4th edition) §4.8, on circulant matrices.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Inexact
from torch import Tensor

from ropewalk.blocks.monarch.constructions import (
    Construction,
    against_dense,
    as_rows,
    dft,
    nearest_split,
    units,
)


@dataclass(frozen=True, eq=False, repr=False)
class ConstructionProduct:
    """A corner of the product of two constructions: pad, first, second, cut.

    Attributes:
        first: applied to the rows, filled up with zeros.
        second: applied to its result.
        in_features: columns of the matrix.
        out_features: rows of the matrix.
        real: the matrix is real although the factors are complex; the imaginary part of the result
            is rounding and is dropped.
    """

    first: Construction
    second: Construction
    in_features: int
    out_features: int
    real: bool

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The factors of both, in the order in which they act."""
        return self.first.factors + self.second.factors

    @property
    def parameters(self) -> int:
        """Numbers in the factors."""
        return self.first.parameters + self.second.parameters

    def apply(self, x: Inexact[Tensor, "*batch inputs"]) -> Inexact[Tensor, "*batch outputs"]:
        """Rows times the matrix.

        Args:
            x: in the dtype of the factors, or the real one of the same precision.

        Returns:
            In the dtype of the factors; of x where the matrix is real.

        Raises:
            ValueError: another width, dtype or device.
            TypeError: not a tensor.
        """
        rows = as_rows(x, self.first.dtype, self.in_features)
        width = len(self.first.input_order)
        rows = torch.nn.functional.pad(rows, (0, width - self.in_features))
        y = self.second.apply(self.first.apply(rows))[..., : self.out_features]
        return y.real if self.real and not x.is_complex() else y

    def __call__(self, x: Inexact[Tensor, "*batch inputs"]) -> Inexact[Tensor, "*batch outputs"]:
        """See `apply`."""
        return self.apply(x)

    def __repr__(self) -> str:
        sizes = tuple(factor.shape[-1] for factor in self.factors)
        parameters = against_dense(self.parameters, self.in_features * self.out_features)
        return (
            f"{type(self).__name__}({self.in_features}, {self.out_features}, sizes={sizes}, "
            f"dtype={self.first.dtype}, {parameters})"
        )

    def to_dense(self) -> Inexact[Tensor, "outputs inputs"]:
        """The matrix itself."""
        identity = units(self.in_features, self.first.factors[0])
        return self.apply(identity.real if self.real else identity).mT.contiguous()


def circulant(column: Inexact[Tensor, " n"]) -> ConstructionProduct:
    """The circulant matrix C[i, j] = column[(i − j) mod n], by the convolution theorem.

    A length without a split near its square root (a prime, or twice one) is embedded in a longer
    one if that takes fewer parameters, as `toeplitz` does. Differentiable in the column.

    Args:
        column: the first column; float32, float64, complex64 or complex128.

    Raises:
        ValueError: not one-dimensional, empty, or of another dtype.
        TypeError: not a tensor.
    """
    _check_line("column", column)
    n = len(column)
    padded = _roomy(2 * n - 1)
    if n > 1 and sum(nearest_split(n)) * n <= sum(padded) * math.prod(padded):
        axes = nearest_split(n)
        return _by_convolution(column, axes, n, n)
    wrapped = column.roll(-1).flip(0)  # the first row: column[0], column[n − 1], …, column[1]
    return toeplitz(column, wrapped)


def toeplitz(
    column: Inexact[Tensor, " outputs"], row: Inexact[Tensor, " inputs"] | None = None
) -> ConstructionProduct:
    """The Toeplitz matrix T[i, j] = column[i − j] for i ≥ j, else row[j − i].

    As `scipy.linalg.toeplitz` has it. Embedded in a circulant matrix of N ≥ outputs + inputs − 1
    rows and columns with N = a·b and a ≈ b ≈ √N; 2·N·(a + b) parameters. Differentiable in both.

    Args:
        column: the first column; float32, float64, complex64 or complex128.
        row: the first row, whose first entry is not read; by default the column's conjugate, which
            makes a Hermitian matrix.

    Raises:
        ValueError: not one-dimensional, empty, or of other dtypes.
        TypeError: not tensors.
    """
    _check_line("column", column)
    if row is None:
        row = column.conj()
    _check_line("row", row)
    if row.dtype != column.dtype or row.device != column.device:
        raise ValueError(
            f"row: expected {column.dtype} on {column.device} as column is, got {row.dtype} on "
            f"{row.device}; use .to(column)"
        )
    outputs, inputs = len(column), len(row)
    axes = _roomy(outputs + inputs - 1)
    gap = column.new_zeros(math.prod(axes) - outputs - inputs + 1)
    return _by_convolution(torch.cat((column, gap, row[1:].flip(0))), axes, inputs, outputs)


def _by_convolution(
    column: Tensor, axes: tuple[int, ...], inputs: int, outputs: int
) -> ConstructionProduct:
    n, dtype = len(column), torch.promote_types(column.dtype, torch.complex64)
    there = dft(n, axes, dtype=dtype, device=column.device)
    back = dft(n, axes, inverse=True, dtype=dtype, device=column.device)
    # The product's own order: what it computes k-th is what output_order writes elsewhere.
    spectrum = there.apply(column)[torch.argsort(there.output_order)]
    last = there.factors[-1] * spectrum.view(-1, there.factors[-1].shape[1], 1)
    first = Construction((*there.factors[:-1], last), there.input_order, there.output_order)
    return ConstructionProduct(first, back, inputs, outputs, not column.is_complex())


def _roomy(least: int) -> tuple[int, int]:
    """Two nearly equal axes for at least so many features."""
    first = math.isqrt(least - 1) + 1 if least > 1 else 1
    return first, -(-least // first)


def _check_line(name: str, values: Tensor) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(values).__name__}")
    single_or_double = (torch.float32, torch.float64, torch.complex64, torch.complex128)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name}: expected (n,) with n ≥ 1, got {tuple(values.shape)}")
    if values.dtype not in single_or_double:
        raise ValueError(
            f"{name}: expected float32, float64, complex64 or complex128, got {values.dtype}; "
            "Fourier transforms need single precision, use .float()"
        )
