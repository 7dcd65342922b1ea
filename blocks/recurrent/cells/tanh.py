"""`TanhCell`: h' = tanh(A h + W x + b), dense as `nn.RNN` or diagonal.

    J = diag(1 − h'²) A

Bounded: with Σ_j |A_ij| ≤ 1 for every row, |J|_∞ ≤ 1 whatever the state, because 1 − h'² ≤ 1.

Source: kexue.fm/archives/9783; the diagonal cell is the one that the fused kernel computes as
"tanh".
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.blocks.recurrent.cells.bounded import bound, unbound
from ropewalk.blocks.recurrent.cells.gated import GatedCell, rows_of, signed


class TanhCell(GatedCell):
    """The plain recurrence with a hyperbolic tangent.

    Example:
        >>> cell = TanhCell(8, diagonal=True)
        >>> cell.step(torch.zeros(2, 8), cell.project(torch.randn(2, 8))).shape
        torch.Size([2, 8])

    Attributes:
        weight_hh: A, (hidden, hidden) as in `nn.RNN`, or (1, hidden) if diagonal; of a bounded cell
            the free parameters that A is made of.

    Args:
        dim: hidden size, and that of the inputs unless `input_dim` is another.
        diagonal: whether every channel reads only itself.
        input_dim: dim of the inputs.
        bias: whether there are biases.
        bounded: whether ‖∂h'/∂h‖_∞ ≤ 1 is kept by the parametrisation.
        device: of the parameters.
        dtype: of the parameters, a floating-point one.

    Raises:
        ValueError: a size below 1, a dtype that is not floating-point.
        TypeError: an argument of the wrong kind.
    """

    gates: ClassVar[int] = 1

    def __init__(
        self,
        dim: int,
        diagonal: bool = False,
        *,
        input_dim: int | None = None,
        bias: bool = True,
        bounded: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(diagonal, bool):
            raise TypeError(
                f"TanhCell.diagonal: expected True or False, got {diagonal!r}; the inputs' size is "
                "input_dim=…"
            )
        self.structure = "diagonal" if diagonal else "dense"
        self.kernel = "tanh" if diagonal else None
        self.state_shape = (dim,)
        super().__init__(
            dim if input_dim is None else input_dim,
            dim,
            (1, dim) if diagonal else (dim, dim),
            bias=bias,
            bounded=bounded,
            device=device,
            dtype=dtype,
        )

    @property
    def diagonal(self) -> bool:
        """Whether every channel reads only itself."""
        return self.structure == "diagonal"

    def _reset_recurrent(self) -> None:
        weight = self.weight_hh
        if self.diagonal:
            effective = signed(weight[0], 0.5, 0.95)
        elif self.bounded:
            effective = rows_of(weight, total=0.9, diagonal=0.5)
        else:
            return
        if self.bounded:
            (effective,) = unbound([(effective, 1.0)], 1.0)
        weight.copy_(effective)

    def effective_weight(self) -> Float[Tensor, "hidden hidden"] | Float[Tensor, " hidden"]:
        """A; of a bounded cell in float32 or wider."""
        weight = self.weight_hh[0] if self.diagonal else self.weight_hh
        return bound([(weight, 1.0)], 1.0)[0] if self.bounded else weight

    def named_weights(self) -> dict[str, Tensor]:
        """See `Cell.named_weights`."""
        return {"A": self.effective_weight()}

    def _recurrent_weights(self) -> list[Tensor]:
        return [self.effective_weight()]

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.step`."""
        (weight,), u = self._weights(state.dtype), drive[..., 0, :]
        return torch.tanh(
            state * weight + u if self.diagonal else functional.linear(state, weight) + u
        )

    def jacobian(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.jacobian`."""
        (weight,), slope = self._weights(state.dtype), 1 - self.step(state, drive) ** 2
        return slope * weight if self.diagonal else slope[..., None] * weight

    def kernel_weights(self) -> Float[Tensor, "rows channels"]:
        """A, (1, channels); see `ropewalk.kernels.newton_scan`."""
        return self.effective_weight()[None] if self.diagonal else super().kernel_weights()
