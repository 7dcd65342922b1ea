"""A constant recurrence in the eigenbasis of its matrix: a diagonal scan over complex numbers.

    A = P Λ P⁻¹,    x_t = A x_{t−1} + b_t   ⇔   y_t = Λ y_{t−1} + P⁻¹ b_t,   x = P y

The article's simplified form of its fixed-A iteration (kexue.fm/archives/9783): hidden² for a step
instead of hidden³. Rounding grows with the condition number of P, which is infinite if A is
defective, so that such an A is refused. Eigenvectors are computed in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropewalk.kernels.linear_scan import linear_scan

GREATEST_CONDITION = 1e4
"""Of P: float32 keeps three digits then."""


@dataclass(frozen=True)
class Eigenbasis:
    """A matrix, or one for each channel, and its eigenbasis.

    Attributes:
        matrix: A, (size, size), or (channels, 2, 2).
        values: Λ, complex, (size,) or (channels, 2).
        vectors: P, complex.
        inverse: P⁻¹.
    """

    matrix: Tensor
    values: Tensor
    vectors: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, a: Tensor, structure: str) -> "Eigenbasis":
        """The eigenbasis of a Jacobian in the structure "block2" or "dense".

        Raises:
            ValueError: A has no eigenbasis, or hardly one.
        """
        matrix = a.permute(2, 0, 1) if structure == "block2" else a
        values, vectors = torch.linalg.eig(matrix.double())
        if not (torch.compiler.is_compiling() or a.is_meta):
            condition = float(torch.linalg.cond(vectors.detach()).max())
            if not condition <= GREATEST_CONDITION:
                raise ValueError(
                    "Fixed(diagonalise=True): expected A with an eigenbasis, got one whose "
                    f"eigenvectors have the condition number {condition:.3g} (at most "
                    f"{GREATEST_CONDITION:.0e}); use Fixed(), which needs none"
                )
        inverse = torch.linalg.inv(vectors)
        narrow = torch.complex128 if a.dtype == torch.float64 else torch.complex64
        return cls(matrix, values.to(narrow), vectors.to(narrow), inverse.to(narrow))

    def scan(self, b: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """x_t = A x_{t−1} + b_t from zeros."""
        y = _apply(self.inverse, b.to(self.values.dtype))
        values = self.values.mT if self.values.ndim == 2 else self.values
        flat = linear_scan(
            values.flatten().expand(*b.shape[:2], -1), y.flatten(2), cu_seqlens=cu_seqlens
        )
        return _apply(self.vectors, flat.view(b.shape)).real

    def times(self, x: Tensor) -> Tensor:
        """A x."""
        return _apply(self.matrix, x)


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    if matrix.ndim == 2:
        return x @ matrix.mT
    return torch.einsum("cij,btjc->btic", matrix, x)
