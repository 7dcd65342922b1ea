"""Matrices that are products of small blocks exactly: Fourier's and Hadamard's.

They are what shows that the class is expressive, and their factors are exact starting points.
`convolutions` makes circulant and Toeplitz matrices of them.

Fourier (Cooley and Tukey 1965, doi 10.2307/2003354). With j = j_1·n/n_1 + j' and k = k_1 + n_1·k',

    ω_n^(k·j) = ω_(n_1)^(k_1·j_1) · ω_n^(k_1·j') · ω_(n/n_1)^(k'·j'),   ω_n = exp(−2πi/n)

so the slowest axis j_1 of the input is transformed first, the twiddles ω_n^(k_1·j') going into that
factor's blocks, and the rest is a transform of n/n_1. n·Σ n_i numbers for n = Π n_i.

Hadamard (Sylvester's): H_(n·m) = H_n ⊗ H_m, one axis a factor and all its blocks alike.

A product of factors as `product` defines it reads and writes contiguous blocks. The Fourier
transform reads its first axis strided and writes its digits reversed, so it is Monarch only up to
a permutation on either side. Both are part of a construction, `input_order` and `output_order`,
and are not folded away: matrix = product[output_order][:, input_order⁻¹].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Inexact, Int
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.monarch.product import monarch_product


@dataclass(frozen=True, eq=False, repr=False)
class Construction:
    """A matrix as a product of factors between two permutations.

        y = monarch_product(x[..., input_order], factors)[..., output_order]

    With two factors, `MonarchLinear.from_factors(*factors)` is a layer that starts as this product
    (of real numbers), between the same permutations.

    Attributes:
        factors: as `product.monarch_product` takes them.
        input_order: which input is read at each place; a permutation.
        output_order: which result of the product is written at each place; a permutation.
    """

    factors: tuple[Tensor, ...]
    input_order: Int[Tensor, " features"]
    output_order: Int[Tensor, " features"]

    @property
    def parameters(self) -> int:
        """Numbers in the factors."""
        return sum(factor.numel() for factor in self.factors)

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors."""
        return self.factors[0].dtype

    def apply(self, x: Inexact[Tensor, "*batch features"]) -> Inexact[Tensor, "*batch features"]:
        """Rows times the matrix.

        Args:
            x: in the dtype of the factors, or the real one of the same precision.

        Raises:
            ValueError: another width, dtype or device.
            TypeError: not a tensor.
        """
        x = as_rows(x, self.dtype, len(self.input_order))
        return monarch_product(x[..., self.input_order], self.factors)[..., self.output_order]

    def __call__(self, x: Inexact[Tensor, "*batch features"]) -> Inexact[Tensor, "*batch features"]:
        """See `apply`."""
        return self.apply(x)

    def __repr__(self) -> str:
        features = len(self.input_order)
        sizes = tuple(factor.shape[-1] for factor in self.factors)
        return (
            f"{type(self).__name__}({features}, sizes={sizes}, dtype={self.dtype}, "
            f"{against_dense(self.parameters, features * features)})"
        )

    def to_dense(self) -> Inexact[Tensor, "features features"]:
        """The matrix itself."""
        return self.apply(units(len(self.input_order), self.factors[0])).mT.contiguous()


def dft(
    n: int,
    sizes: Sequence[int] | None = None,
    *,
    inverse: bool = False,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str | None = None,
) -> Construction:
    """The discrete Fourier transform, as `torch.fft.fft` and (inverse) `torch.fft.ifft` have it.

    Args:
        n: length.
        sizes: the axes (n_1, …, n_p), whose product is n. By default the two that are nearest to
            √n. A prime has no such split and is refused: its transform would be the dense matrix,
            which sizes=(n,) gives.
        inverse: the inverse, 1/n included.
        dtype: complex64 or complex128. Angles are computed in float64.
        device: of the factors.

    Raises:
        ValueError: sizes of another product, a prime n, another dtype.
        TypeError: an argument of the wrong kind.

    Example:
        >>> transform = dft(64)
        >>> x = torch.randn(3, 64)
        >>> torch.allclose(transform.apply(x), torch.fft.fft(x), atol=1e-4)
        True
        >>> transform.parameters  # 64·(8 + 8), of 4096
        1024
    """
    if dtype not in (torch.complex64, torch.complex128):
        raise ValueError(f"dtype: expected torch.complex64 or torch.complex128, got {dtype}")
    axes = _axes(n, sizes)
    order, factors = len(axes), []
    for j, size in enumerate(axes):
        length = math.prod(axes[j:])  # of the transform that is left
        # Blocks are counted over the outputs that are there and the axes n_p, …, n_(j + 2).
        rest = torch.arange(length // size, device=device).view(axes[j + 1 :] or (1,))
        rest = rest.permute(*reversed(range(rest.ndim))).flatten()
        digit = torch.arange(size, device=device)
        # Modulo the period as integers, because large angles lose their digits.
        turns = digit[:, None] * (digit * (length // size) + rest[:, None, None])
        turns = (turns % length).double() / length
        angle = 2 * math.pi * turns if inverse else -2 * math.pi * turns
        factor = torch.polar(torch.full_like(angle, 1 / size if inverse else 1.0), angle)
        done = math.prod(axes[:j])
        factors.append(factor.repeat(done, 1, 1).to(dtype))
    # Both orders of axes are reversed: what the product contracts first is what it has last.
    digits = torch.arange(n, device=device).view(axes)
    reversal = digits.permute(*reversed(range(order))).flatten()
    return Construction(tuple(factors), reversal, reversal)


def hadamard(
    n: int,
    sizes: Sequence[int] | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Construction:
    """Sylvester's Hadamard matrix of ±1, as `scipy.linalg.hadamard` has it. H Hᵀ = n.

    Args:
        n: a power of two.
        sizes: the axes (n_1, …, n_p), whose product is n; by default the two nearest to √n. As
            many twos as there are make the fast Walsh–Hadamard transform.
        dtype: of the factors, floating-point or complex.
        device: of the factors.

    Raises:
        ValueError: n is no power of two, sizes of another product, or an integer dtype.
        TypeError: an argument of the wrong kind.
    """
    require_integer("hadamard", 1, n=n)
    if n & (n - 1):
        raise ValueError(
            f"n: expected a power of two, got {n}; pad to {1 << n.bit_length()}, or take a "
            "Monarch matrix that is learned"
        )
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if not (dtype.is_floating_point or dtype.is_complex):
        raise ValueError(f"dtype: expected a floating-point or complex one, got {dtype}")
    axes = _axes(n, sizes) if n > 2 or sizes is not None else (n,)
    index = torch.arange(max(axes), device=device)
    common = index[:, None] & index
    parity = torch.zeros_like(common)
    for bit in range(n.bit_length()):
        parity ^= common >> bit & 1
    signs = (1 - 2 * parity).to(dtype)
    # The product contracts the last input axis first.
    factors = tuple(signs[:size, :size].repeat(n // size, 1, 1) for size in reversed(axes))
    order = torch.arange(n, device=device)
    digits = order.view(axes[::-1]).permute(*reversed(range(len(axes)))).flatten()
    return Construction(factors, order, digits)


def _axes(n: int, sizes: Sequence[int] | None) -> tuple[int, ...]:
    require_integer("construction", 1, n=n)
    if sizes is None:
        axes = nearest_split(n)
        if axes[0] == 1 and n > 1:
            raise ValueError(
                f"n: expected a number with divisors, got the prime {n}; pad to a composite one, "
                f"or take sizes=({n},), which is one dense factor"
            )
        return axes
    axes = tuple(sizes)
    for index, size in enumerate(axes):
        require_integer("construction", 1, **{f"sizes[{index}]": size})
    if not axes or math.prod(axes) != n:
        raise ValueError(
            f"sizes: expected axes whose product is n = {n}, got {axes} with the product "
            f"{math.prod(axes)}"
        )
    return axes


def nearest_split(n: int) -> tuple[int, int]:
    """The two divisors nearest to √n, the smaller one first."""
    smaller = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return smaller, n // smaller


def against_dense(parameters: int, dense: int) -> str:
    """Parameters, and those of the matrix."""
    return f"parameters={parameters} ({parameters / dense:.1%} of dense)"


def as_rows(x: Tensor, dtype: torch.dtype, features: int) -> Tensor:
    """The rows in the dtype of the factors; a precision that is not theirs is refused."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
    if x.ndim < 1 or x.shape[-1] != features:
        raise ValueError(f"x: expected (..., {features}), got {tuple(x.shape)}")
    if x.dtype not in (dtype, dtype.to_real()):
        raise ValueError(
            f"x: expected {dtype} as the factors are, or {dtype.to_real()}, got {x.dtype}; use "
            ".to(), or make the construction with another dtype"
        )
    return x.to(dtype)


def units(count: int, like: Tensor) -> Tensor:
    """The unit vectors, in the dtype and on the device of `like`."""
    return torch.eye(count, dtype=like.dtype, device=like.device)
