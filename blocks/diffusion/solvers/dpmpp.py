"""DPM-Solver++(2M): DDIM's step with x̂₀ extrapolated from the last two predictions.

    D = (1 + 1/2r)·x̂₀ − 1/2r·x̂₀_previous        r = h_previous / h,  h = ½(λ_s − λ_t)
    x_s = (σ_s/σ_t)·x_t − α_s(e^(−h) − 1)·D

which is the universal step at ρ = 0 with D for x̂₀. One prediction a step, second order. The first
step and the step to the data, where h is infinite, take x̂₀ as it is.

Source: Lu et al., arXiv 2211.01095, Algorithm 2.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ropewalk.blocks.diffusion.checks import wide
from ropewalk.blocks.diffusion.solvers.solver import AFFINE, Run, Solver, Span, State, Stepped


class Previous(NamedTuple):
    """What the step before predicted, and how long it was in half log-SNR."""

    x0: State
    length: float


@dataclass(frozen=True)
class DPMPlusPlus2M(Solver):
    """The multistep solver of second order; deterministic."""

    name: ClassVar[str] = "dpmpp_2m"
    kinds: ClassVar[frozenset[str]] = AFFINE
    stochasticity: ClassVar[float | None] = None
    order: ClassVar[int] = 2

    def step(self, run: Run, x: State, span: Span, memory: Any) -> Stepped:
        x0, _ = run.data(x, span.t)
        schedule = run.process.schedule
        length = float(schedule.log_snr(span.s) - schedule.log_snr(span.t)) / 2
        extrapolated = x0
        if isinstance(memory, Previous) and not span.lands and math.isfinite(memory.length):
            share = length / memory.length / 2
            latest, previous = x0.to(wide(x0)), memory.x0.to(wide(x0))
            extrapolated = latest + share * (latest - previous)
        x_s = run.move(x, extrapolated, span, 0.0)
        return Stepped(x_s, x0, Previous(x0, length))
