"""What an implementation gets and what it gives.

An implementation is a module with two functions:

    forward(problem, options) -> Scanned
    backward(problem, states, grad, needs, options) -> Gradients

The gradient is that of the solution: with J_t the Jacobian of step t at the states,

    g_t = grad_t + J_(t+1)ᵀ g_(t+1)

and then the cell's own pullback of g_t for its inputs and weights. How the states were found does
not matter to it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.newton_scan.cells import CELLS, Cell

CellName = Literal["tanh", "gru", "lstm"]
Algorithm = Literal["auto", "newton", "sequential"]

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


@dataclass(frozen=True)
class Problem:
    """A batch of recurrences of a built-in cell.

    Attributes:
        inputs: (batch, time, gates, channels), of any strides.
        weights: (rows, channels), in the dtype of the inputs or in float32.
        initial: (sequences, channels), of the LSTM (sequences, 2, channels), in the dtype of the
            inputs or in float32; or none for zeros.
        cell: one of `CELLS`.
        cu_seqlens: (sequences + 1,) int32, where packed sequences begin; then batch is 1.
    """

    inputs: Tensor
    weights: Tensor
    initial: Tensor | None
    cell: str
    cu_seqlens: Tensor | None = None

    @property
    def formulas(self) -> Cell:
        return CELLS[self.cell]

    @property
    def batch(self) -> int:
        return self.inputs.shape[0]

    @property
    def time(self) -> int:
        return self.inputs.shape[1]

    @property
    def channels(self) -> int:
        return self.inputs.shape[-1]

    @property
    def sequences(self) -> int:
        """Rows of the batch, or packed sequences."""
        return self.batch if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of one state."""
        return self.formulas.state_shape(self.channels)

    @property
    def dtype(self) -> torch.dtype:
        """What is calculated in."""
        return wide(self.inputs.dtype)


@dataclass(frozen=True)
class Options:
    """How the states are found.

    Attributes:
        algorithm: "newton", "sequential", or "auto" for the faster one.
        window: steps that are solved at once; None leaves it to the implementation.
        tolerance: of a residual; None takes `TOLERANCE`.
        max_iterations: within a window; None is as many as it has steps, which are always enough.
    """

    algorithm: str = "auto"
    window: int | None = None
    tolerance: float | None = None
    max_iterations: int | None = None

    def limit(self, steps: int) -> int:
        """Iterations that a window of so many steps may take."""
        return steps if self.max_iterations is None else min(self.max_iterations, steps)

    def residual_limit(self, dtype: torch.dtype) -> float:
        """The tolerance, for calculations in a dtype."""
        return TOLERANCE[dtype] if self.tolerance is None else self.tolerance


class Scanned(NamedTuple):
    """What a scan gives.

    Attributes:
        states: (batch, time, channels), of the LSTM (batch, time, 2, channels) with [c, h];
            contiguous, in the dtype of the inputs.
        iterations: (sequences, channels) int32, the most that a window took; 0 if all steps were
            taken one after another. The chains of a program are iterated together.
        residual: (sequences, channels) float32, the greatest |f(h_(t−1), x_t) − h_t|. Of a window
            that ended within the tolerance it is what the last iteration met, and then corrected;
            of one that used up its iterations it is what is left in its states, evaluated once
            more. 0 if steps were taken one after another. In half precision it is that of the
            states before they are rounded.
    """

    states: Tensor
    iterations: Tensor
    residual: Tensor


class Needs(NamedTuple):
    """Which gradients are wanted."""

    inputs: bool
    weights: bool
    initial: bool


class Gradients(NamedTuple):
    """Those that were wanted, none elsewhere; of the shapes and dtypes of what they belong to."""

    inputs: Tensor | None
    weights: Tensor | None
    initial: Tensor | None
