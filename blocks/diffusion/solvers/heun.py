"""Heun's method: the trapezoidal rule with Euler's step as its guess; EDM's Algorithm 2.

    y′ = y + (τ_s − τ_t)·slope(y, t)        y_s = y + ½(τ_s − τ_t)·(slope(y, t) + slope(y′, s))

in one of the coordinates of `ropewalk.blocks.diffusion.solvers.coordinates`. The step to the data
is Euler's alone, as in EDM, since the slope has no value where there is no noise. Two predictions a
step, second order.

Stochasticity is EDM's churn: before a step the noise level r = σ/α grows to (1 + γ)r, by noise
of variance (r̂² − r²)·noise_scale², with γ = stochasticity·(√2 − 1); their S_churn is
γ·steps. The level never grows beyond what the schedule has at t = 1.

Source: Karras et al., arXiv 2206.00364, Algorithm 2.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ropewalk.blocks.checks import require_number
from ropewalk.blocks.diffusion.checks import wide
from ropewalk.blocks.diffusion.process import Process
from ropewalk.blocks.diffusion.solvers.coordinates import (
    COORDINATES,
    Coordinate,
    Place,
    place,
    suited,
)
from ropewalk.blocks.diffusion.solvers.solver import (
    AFFINE,
    Moment,
    Run,
    Solver,
    Span,
    State,
    Stepped,
)

MOST_CHURN = math.sqrt(2) - 1


@dataclass(frozen=True)
class Heun(Solver):
    """EDM's second-order solver; stochasticity is its churn, 0 by default.

    Attributes:
        coordinate: "sigma", "flow" or "angle"; None takes EDM's "sigma", or "flow" for schedules
            that reach α = 0.
        low: S_tmin, the least σ/α at which there is churn.
        high: S_tmax, the greatest.
        noise_scale: S_noise, the standard deviation of the noise that churn adds.

    Raises:
        ValueError: an unknown coordinate, or `low` not below `high`.
    """

    name: ClassVar[str] = "heun"
    kinds: ClassVar[frozenset[str]] = AFFINE
    stochasticity: ClassVar[float | None] = 0.0
    order: ClassVar[int] = 2
    coordinate: Coordinate | None = None
    low: float = 0.0
    high: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        require_number("Heun", low=self.low, high=self.high, noise_scale=self.noise_scale)
        if not 0 <= self.low < self.high:
            raise ValueError(
                f"Heun: expected 0 ≤ low < high, got low={self.low!r}, high={self.high!r}"
            )
        if self.coordinate is not None and self.coordinate not in COORDINATES:
            raise ValueError(
                f"Heun.coordinate: expected None or one of {COORDINATES}, got {self.coordinate!r}"
            )

    def refuse(self, process: Process, times: Tensor, stochasticity: float) -> None:
        super().refuse(process, times, stochasticity)
        if stochasticity > 0 and process.kind != "gaussian":
            raise ValueError(
                f"solver 'heun': expected stochasticity 0 for the process {process.kind!r}, whose "
                f"noise is not the sum of smaller ones, got {stochasticity}; 'euler' takes one"
            )
        if self.coordinate == "sigma" and float(process.schedule.alpha(times[0])) == 0:
            raise ValueError(
                "Heun.coordinate: 'sigma' is σ/α, which is infinite where the schedule's α is 0, "
                f"at the first time {float(times[0]):g}; take 'flow', 'angle' or None"
            )

    def step(self, run: Run, x: State, span: Span, memory: Any) -> Stepped:
        t, s, lands = span
        # Chosen once, at the first step: a run changes its coordinate at no point.
        coordinate = memory or self.coordinate or suited(run.process.schedule, t)
        dtype = x.dtype
        x = x.to(wide(x))
        if run.stochasticity > 0:
            x, t = self._churned(run, x, t)
        x0, _ = run.data(x.to(dtype), t)
        if lands:
            return Stepped(x0, x0, coordinate)
        here, there = (
            place(coordinate, run.process.schedule.alpha(u), run.process.schedule.sigma(u))
            for u in (t, s)
        )
        length = (there.clock - here.clock).to(x)
        y = x / here.scale.to(x)
        first = slope(run.process, x, x0.to(x), t, here)
        guess = there.scale.to(x) * (y + length * first)
        second = slope(run.process, guess, run.data(guess.to(dtype), s)[0].to(x), s, there)
        after = there.scale.to(x) * (y + length * (first + second) / 2)
        return Stepped(after.to(dtype), x0, coordinate)

    def _churned(self, run: Run, x: State, t: Moment) -> tuple[State, Moment]:
        """The state with more noise, and the time at which there is so much."""
        schedule = run.process.schedule
        alpha = schedule.alpha(t)
        level, most = schedule.sigma(t) / alpha, schedule.sigma(1.0) / schedule.alpha(1.0)
        if not self.low <= float(level) <= self.high or level >= most:
            return x, t
        raised = torch.minimum(level * (1 + MOST_CHURN * run.stochasticity), most)
        later = schedule.time_at(-2 * raised.log())
        added = self.noise_scale * (raised.square() - level.square()).sqrt()
        y = x / alpha.to(x) + added.to(x) * run.normal(x)
        return schedule.alpha(later).to(x) * y, later


def slope(process: Process, x: State, x0: State, t: Moment, at: Place) -> State:
    """dy/dτ at a state whose data was predicted as x̂₀."""
    noise = process.noise(x, x0, t)
    return at.on_data.to(x) * x0 + at.on_noise.to(x) * noise
