"""Solvers that are the universal step alone, told apart by the part ρ of the noise they replace.

    euler       ρ = η·ρ_ddpm for affine processes: DDIM-η, and Euler's method at η = 0.
                ρ = η for the others: at 0 cold diffusion's improved sampling, and unmasking
    ancestral   the posterior q(x_s|x_t, x̂₀): ρ = ρ_ddpm for affine processes, DDPM's; with the
                variance that a network learned, if it learned one. For tokens ρ = 0
    renoise     ρ = η at every step, 1 unless it is said otherwise: x̂₀ is corrupted afresh, as
                consistency models and naive cold diffusion are sampled. Its x̂₀ must be like the
                data: a mean of what is possible shrinks with every step

ρ_ddpm² = 1 − (α_tσ_s/(α_sσ_t))². Source: Su, kexue.fm/archives/9181 and 9262; Song, Meng and
Ermon, arXiv 2010.02502, equation 16 (η); Bansal et al., arXiv 2208.09392, algorithms 1 and 2.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ropewalk.blocks.diffusion.checks import wide
from ropewalk.blocks.diffusion.process import Affine
from ropewalk.blocks.diffusion.solvers.solver import (
    AFFINE,
    EVERY,
    Run,
    Solver,
    Span,
    State,
    Stepped,
)
from ropewalk.blocks.diffusion.solvers.variance import posterior_log_variance
from ropewalk.blocks.diffusion.step import ancestral_rho


@dataclass(frozen=True)
class Euler(Solver):
    """DDIM-η and Euler's method for any process; stochasticity is η, 0 by default."""

    name: ClassVar[str] = "euler"
    kinds: ClassVar[frozenset[str]] = EVERY
    stochasticity: ClassVar[float | None] = 0.0
    order: ClassVar[int] = 1

    def step(self, run: Run, x: State, span: Span, memory: Any) -> Stepped:
        x0, _ = run.data(x, span.t)
        rho = run.stochasticity
        if rho > 0 and isinstance(run.process, Affine):
            rho = rho * ancestral_rho(run.process.schedule, span.t, span.s)
        return Stepped(run.move(x, x0, span, rho), x0)


@dataclass(frozen=True)
class Ancestral(Solver):
    """Draws from the posterior; takes no stochasticity, `euler` with η does."""

    name: ClassVar[str] = "ancestral"
    kinds: ClassVar[frozenset[str]] = AFFINE | {"mask", "edit"}
    stochasticity: ClassVar[float | None] = None
    order: ClassVar[int] = 1

    def step(self, run: Run, x: State, span: Span, memory: Any) -> Stepped:
        x0, prediction = run.data(x, span.t)
        if not isinstance(run.process, Affine):
            return Stepped(run.move(x, x0, span, 0.0), x0)
        if prediction.variance is None or span.lands or run.process.kind != "gaussian":
            rho = ancestral_rho(run.process.schedule, span.t, span.s)
            return Stepped(run.move(x, x0, span, rho), x0)
        return Stepped(self._learned(run, x, x0, prediction.variance, span), x0)

    def _learned(self, run: Run, x: State, x0: State, raw: Tensor, span: Span) -> State:
        """μ(x̂₀, x_t) + √(learned variance)·z."""
        schedule, dtype, (t, s, _) = run.process.schedule, x.dtype, span
        x, x0, raw = (each.to(wide(x)) for each in (x, x0, raw))
        kept = (1 - ancestral_rho(schedule, t, s).square()).sqrt()
        mean = run.process.corrupt(x0, kept.to(x) * run.process.noise(x, x0, t), s)
        deviation = (0.5 * posterior_log_variance(raw, schedule, t, s)).exp()
        return (mean + deviation * run.normal(x)).to(dtype)


@dataclass(frozen=True)
class Renoise(Solver):
    """Replaces the part η of the noise at every step, all of it by default."""

    name: ClassVar[str] = "renoise"
    kinds: ClassVar[frozenset[str]] = EVERY
    stochasticity: ClassVar[float | None] = 1.0
    order: ClassVar[int] = 1

    def step(self, run: Run, x: State, span: Span, memory: Any) -> Stepped:
        x0, _ = run.data(x, span.t)
        return Stepped(run.move(x, x0, span, run.stochasticity), x0)
