"""The probability flow of an affine process as dy/dτ = slope(y, τ), for solvers of other libraries.

The coordinate is one of `ropewalk.blocks.diffusion.solvers.coordinates`; "flow" and "angle" are
smooth up to t = 1 whatever the schedule, and make of every schedule the same equation: only the
model and the noise levels remain. Near the data the noise is divided by σ, so the equation ends at
a level `least_noise` = σ/α just above 0.

torchdiffeq (Chen, arXiv 1806.07366) is imported when it is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ropewalk.blocks.checks import require_positive
from ropewalk.blocks.diffusion.checks import described
from ropewalk.blocks.diffusion.process import Process
from ropewalk.blocks.diffusion.schedule import Schedule
from ropewalk.blocks.diffusion.solvers.coordinates import (
    COORDINATES,
    Coordinate,
    Place,
    log_snr_at,
    place,
)
from ropewalk.blocks.diffusion.solvers.heun import slope
from ropewalk.blocks.diffusion.solvers.solver import AFFINE

ADAPTIVE = ("dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun")
"""torchdiffeq's methods that choose their steps."""
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
MULTISTEP = ("explicit_adams", "implicit_adams", "fixed_adams")
METHODS = (*ADAPTIVE, *FIXED, *MULTISTEP, "scipy_solver")
"""All methods of torchdiffeq."""


@dataclass(frozen=True)
class Flow:
    """The equation, and where it begins and ends.

    Attributes:
        process: affine.
        data: the guided model's x̂₀ at (x, t).
        coordinate: y and τ.
        least_noise: σ/α at the data's end.
    """

    process: Process
    data: Callable[[Tensor, Tensor], Tensor]
    coordinate: Coordinate
    least_noise: float

    @property
    def schedule(self) -> Schedule:
        """Of the process."""
        return self.process.schedule

    @property
    def first_time(self) -> Tensor:
        """Where the data's end is: t > 0, or 0 where the schedule keeps more noise than that."""
        noise = torch.tensor(self.least_noise, dtype=torch.float64)
        return self.schedule.time_at(-2 * noise.log())

    def at(self, t: Tensor) -> Place:
        """A time in the coordinate."""
        return place(self.coordinate, self.schedule.alpha(t), self.schedule.sigma(t))

    def time_of(self, clock: Tensor) -> Tensor:
        """The time at a value of τ; a clock in float32 may lie a rounding beyond the ends."""
        first = self.first_time.to(clock.device)
        ends = self.at(first).clock, self.at(torch.ones_like(first)).clock
        within = torch.minimum(torch.maximum(clock.double(), ends[0]), ends[1])
        return self.schedule.time_at(log_snr_at(self.coordinate, within))

    def slope(self, clock: Tensor, y: Tensor) -> Tensor:
        """dy/dτ."""
        t = self.time_of(clock)
        at = self.at(t)
        x = at.scale.to(y) * y
        return slope(self.process, x, self.data(x, t), t, at)


def check_flow(process: Process, coordinate: Coordinate, least_noise: float) -> None:
    """Raises unless the process has a flow, and the coordinate reaches its end.

    Raises:
        ValueError: another process than an affine one, an unknown coordinate, one that is infinite
            at t = 1, no noise left to divide by, or all the noise that the schedule has.
    """
    if process.kind not in AFFINE:
        raise ValueError(
            f"expected a process with a probability flow, {sorted(AFFINE)}, got {process.kind!r}"
        )
    if coordinate not in COORDINATES:
        raise ValueError(f"coordinate: expected one of {COORDINATES}, got {coordinate!r}")
    if coordinate == "sigma" and float(process.schedule.alpha(1.0)) == 0:
        raise ValueError(
            "coordinate: 'sigma' is σ/α, which is infinite where the schedule's α is 0, at t = 1; "
            "take 'flow' or 'angle'"
        )
    require_positive("ode", least_noise=least_noise)
    most = float(process.schedule.sigma(1.0) / process.schedule.alpha(1.0))
    if least_noise >= most:
        raise ValueError(
            f"least_noise: expected less than the schedule's σ/α at t = 1, {most:g}, got "
            f"{least_noise!r}"
        )


def check_method(solver: str) -> None:
    """Raises unless torchdiffeq has this method.

    Raises:
        TypeError: the solver is no name.
        ValueError: there is none of this name.
    """
    if not isinstance(solver, str):
        raise TypeError(
            f"solver: expected the name of a method of torchdiffeq, got {described(solver)}; the "
            "solvers of `sample` are not for adaptive steps"
        )
    if solver not in METHODS:
        raise ValueError(
            f"solver: expected a method of torchdiffeq, one of {', '.join(METHODS)}, got {solver!r}"
        )


def solver_library() -> ModuleType:
    """The module torchdiffeq.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import torchdiffeq
    except ImportError as error:
        raise ImportError(
            "adaptive sampling and likelihoods need torchdiffeq: pip install 'ropewalk[diffusion]'"
        ) from error
    return torchdiffeq


def integrate(
    function: Callable[[Tensor, Any], Any],
    state: Any,
    span: tuple[Tensor, Tensor],
    *,
    solver: str,
    rtol: float,
    atol: float,
    options: dict[str, Any] | None,
    like: Tensor,
) -> Any:
    """The state at the span's end, by torchdiffeq's `odeint`."""
    clock = torch.stack(span).to(like)
    if solver in ADAPTIVE:
        # Else the last step goes past the end, where there is no flow, and is interpolated.
        options = {"step_t": clock[1:], **(options or {})}
    solution = solver_library().odeint(
        function, state, clock, method=solver, rtol=rtol, atol=atol, options=options
    )
    if isinstance(solution, tuple):
        return tuple(each[-1] for each in solution)
    return solution[-1]
