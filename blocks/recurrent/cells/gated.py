"""What the built-in cells share: weights with torch's names, their projection and initialisation.

    weight_ih  (gates·hidden, input)                             of the inputs
    weight_hh  (rows, hidden) diagonal, (gates·hidden, hidden) dense
    bias_ih    (gates·hidden,)
    bias_hh    (gates·hidden,), for the cells that torch has, because its n-gate needs it

Gates lie in torch's order. A drive is (batch, time, gates, hidden).

Initialisation. Dense weights that are not bounded, and all that reads inputs, are drawn as torch
does it, from U(±1/√hidden). Bounded weights are drawn as effective weights and taken back to free
ones, so that a new cell remembers from its first step on. The gate that keeps the state (z of a
GRU, f of a CIFG) has a bias log U(1, 32) in the bounded and in the diagonal cells: they keep 2 to
32 steps (Tallec & Ollivier, arXiv 1804.11188).
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.recurrent.cells.cell import Cell

LONGEST_MEMORY = 2.0
"""Steps that the slowest channels of a new cell keep. Longer memories are learned; to begin with 32
left a small language model 0.1 nats behind after 180 steps."""


class GatedCell(Cell):
    """A built-in cell: parameters, projection, and the part of the biases that inputs can carry."""

    gates: ClassVar[int]
    mixed_precision = True
    _made: tuple[Tensor, ...] | None = None

    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        weight_hh: tuple[int, int],
        *,
        bias: bool,
        bounded: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        hidden_bias: bool = True,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require_integer(name, 1, input_dim=input_size, hidden_dim=hidden_size)
        for option, value in (("bias", bias), ("bounded", bounded)):
            if not isinstance(value, bool):
                raise TypeError(f"{name}.{option}: expected True or False, got {value!r}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"{name}.dtype: expected a floating-point one, got {dtype}")
        self.input_size, self.hidden_size, self.bounded = input_size, hidden_size, bounded
        rows = self.gates * hidden_size
        shapes: dict[str, tuple[int, ...] | None] = {
            "weight_ih": (rows, input_size),
            "weight_hh": weight_hh,
            "bias_ih": (rows,) if bias else None,
            "bias_hh": (rows,) if bias and hidden_bias else None,
        }
        for parameter, shape in shapes.items():
            empty = None if shape is None else torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(parameter, None if empty is None else nn.Parameter(empty))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all parameters anew."""
        for parameter in self.parameters():
            parameter.uniform_(-1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))
        self._reset_recurrent()

    def _reset_recurrent(self) -> None:
        """Draws what is not as torch draws it."""
        raise NotImplementedError

    def _keep(self, gate: int) -> None:
        """Draws the bias of the gate that keeps the state, for up to LONGEST_MEMORY steps."""
        if self.bias_ih is None:
            return
        rows = slice(gate * self.hidden_size, (gate + 1) * self.hidden_size)
        self.bias_ih[rows] = torch.empty_like(self.bias_ih[rows]).uniform_(1, LONGEST_MEMORY).log()
        if self.bias_hh is not None:
            self.bias_hh[rows] = 0

    def prepared(self, dtype: torch.dtype) -> Self:
        """The cell with the recurrent weights of now; see `Cell.prepared`."""
        # Not copy.copy, which modules with parametrisations refuse.
        twin = type(self).__new__(type(self))
        twin.__dict__.update(vars(self))
        twin.__dict__["_made"] = self._weights(dtype)
        return twin

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The recurrent weights as a step takes them."""
        if self._made is not None:
            return self._made
        return tuple(weight.to(dtype) for weight in self._recurrent_weights())

    def _recurrent_weights(self) -> Sequence[Tensor]:
        """The same in a dtype of their own."""
        raise NotImplementedError

    def _added_bias(self) -> Tensor | None:
        """The biases that inputs can carry: all of both, unless a cell says otherwise."""
        if self.bias_ih is None or self.bias_hh is None:
            return self.bias_ih
        return self.bias_ih + self.bias_hh

    def project(self, inputs: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch gates hidden"]:
        """The gates' inputs W x + b.

        Raises:
            ValueError: inputs of another width.
        """
        if inputs.ndim < 1 or inputs.shape[-1] != self.input_size:
            raise ValueError(
                f"inputs: expected (..., {self.input_size}), got {tuple(inputs.shape)}"
            )
        drive = functional.linear(inputs, self.weight_ih, self._added_bias())
        return drive.unflatten(-1, (self.gates, self.hidden_size))

    def extra_repr(self) -> str:
        """Sizes, structure, and how the recurrent weights are made."""
        return (
            f"{self.input_size}, {self.hidden_size}, structure={self.structure}, "
            f"bias={self.bias_ih is not None}, bounded={self.bounded}"
        )


def signed(like: Tensor, low: float, high: float) -> Tensor:
    """Weights of absolute value in [low, high], of either sign."""
    size = torch.empty_like(like).uniform_(low, high)
    return torch.where(torch.rand_like(size) < 0.5, -size, size)


def rows_of(like: Tensor, total: float, diagonal: float) -> Tensor:
    """A square matrix whose rows have the absolute sum `total`, of which `diagonal` lies on it."""
    noise = torch.empty_like(like).uniform_(-1, 1)
    noise = noise / noise.abs().sum(-1, keepdim=True).clamp_min(1e-6) * (total - diagonal)
    return noise + diagonal * torch.eye(len(like), device=like.device, dtype=like.dtype)
