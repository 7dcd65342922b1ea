"""The equations of a recurrence, h_t = f(h_{t−1}, x_t) for all t, and what is taken from them.

Also the linear algebra of Jacobians in their three structures; see `Cell`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ropewalk.blocks.recurrent.cells import Cell
from ropewalk.blocks.recurrent.solvers.layout import Layout
from ropewalk.kernels.linear_scan import linear_scan


@dataclass(frozen=True)
class System:
    """A cell with its drive and initial states, in the dtype that is calculated in.

    Attributes:
        cell: f.
        drive: (batch, time, …), of `Cell.project`.
        initial: (sequences, *state_shape).
        layout: how the sequences lie.
        constant: whether the cell keeps its weights for good; see `Cell.prepared`.
    """

    cell: Cell
    drive: Tensor
    initial: Tensor
    layout: Layout
    constant: bool = False

    def prepared(self) -> "System":
        """The same with a cell for many steps."""
        cell = self.cell.prepared(self.drive.dtype)
        return replace(self, cell=cell, constant=cell is not self.cell)

    def previous(self, states: Tensor) -> Tensor:
        """The states before each step."""
        return self.layout.previous(states, self.initial)

    def step(self, previous: Tensor) -> Tensor:
        """F at every step."""
        return self.cell.step(previous, self.drive)

    def jacobian(self, previous: Tensor) -> Tensor:
        """J at every step, in the cell's structure."""
        return self.cell.jacobian(previous, self.drive)

    def guess(self) -> Tensor:
        """Where iterations start if nothing better is known: every state is its initial one."""
        return self.layout.spread(self.initial).contiguous()

    def scan(self, a: Tensor, b: Tensor, *, structure: str, reverse: bool = False) -> Tensor:
        """x_t = a_t x_{t−1} + b_t from zeros; backwards x_t = a_t x_{t+1} + b_t.

        Args:
            a: "elementwise", of the states' shape, or in the cell's structure.
            b: (batch, time, *state_shape).
            structure: of a.
            reverse: the direction.
        """
        cu, shape = self.layout.cu_seqlens, b.shape
        if structure == "elementwise" and b.ndim == 4:
            a, b = a.flatten(2), b.flatten(2)
        return linear_scan(a, b, reverse=reverse, cu_seqlens=cu).view(shape)

    def window(self, start: int, stop: int, carry: Tensor, bounds: list[int] | None) -> "System":
        """The steps from start to stop, which follow on the state `carry`.

        Args:
            start: the first step.
            stop: the step after the last.
            carry: (batch, *state_shape), the states before `start`.
            bounds: `cu_seqlens` on the host, if packed.
        """
        drive = self.drive[:, start:stop]
        if bounds is None:
            return replace(
                self, drive=drive, initial=carry, layout=Layout.of(self.layout.batch, stop - start)
            )
        # Sequences that have a step in the window; the first may have begun before it.
        inside = [i for i in range(len(bounds) - 1) if bounds[i] < stop and bounds[i + 1] > start]
        edges = [max(bounds[inside[0]], start), *(min(bounds[i + 1], stop) for i in inside)]
        cu = torch.tensor(edges, dtype=torch.int32, device=drive.device) - start
        initial = self.initial[torch.tensor(inside, device=drive.device)]
        if bounds[inside[0]] < start:
            initial = torch.cat([carry, initial[1:]])
        layout = Layout.of(1, stop - start, cu)
        return replace(self, drive=drive, initial=initial, layout=layout)


def times(a: Tensor, x: Tensor, structure: str) -> Tensor:
    """The product of Jacobians with states, (…, *state_shape)."""
    if structure in ("diagonal", "elementwise"):
        return a * x
    if structure == "block2":
        return (a * x.unsqueeze(-3)).sum(-2)
    return (a @ x.unsqueeze(-1)).squeeze(-1)


def transposed(a: Tensor, structure: str) -> Tensor:
    """Jacobians transposed."""
    if structure in ("diagonal", "elementwise"):
        return a
    return a.transpose(-3, -2) if structure == "block2" else a.mT


def diagonal_of(a: Tensor, structure: str) -> Tensor:
    """The diagonal of Jacobians, of the states' shape."""
    if structure == "diagonal":
        return a
    if structure == "block2":
        return torch.stack([a[..., 0, 0, :], a[..., 1, 1, :]], -2)
    return a.diagonal(dim1=-2, dim2=-1)


def residuals(states: Tensor, made: Tensor) -> Tensor:
    """|h_t − f(h_{t−1}, x_t)| / max(1, |h_t|), the greatest of each step: (time,).

    Infinite where something is not finite.
    """
    relative = (states - made).abs() / states.abs().clamp_min(1)
    relative = torch.nan_to_num(relative, nan=torch.inf, posinf=torch.inf)
    if relative.numel() == 0:
        return relative.new_zeros(relative.shape[1])
    return relative.movedim(1, 0).flatten(1).amax(1)


def greatest(states: Tensor, made: Tensor) -> float:
    """The greatest of `residuals`; 0 without any steps."""
    found = residuals(states.detach(), made.detach())
    return float(found.max()) if found.numel() else 0.0
