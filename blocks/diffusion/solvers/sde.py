"""The family of stochastic differential equations that share the marginals, by Euler–Maruyama.

    dx = (f − ½(g² + w²)·∇log p) dt + w dW, backwards in time
    f = (α'/α)·x        g² = 2σσ' − 2(α'/α)σ²

w = g is the reverse SDE and w = 0 the probability flow; w² = η·g² in between, with stochasticity η.
With ∇log p = −ε̂/σ and g² = 2σ(σ' − σα'/α) the drift is α'x̂₀ + σ'ε̂ + ½(w²/σ)·ε̂. Its first two
terms are integrated over the step as they are, so that without noise this is DDIM's step:

    x_s = x_t + (α_s − α_t)·x̂₀ + (σ_s − σ_t)·ε̂ − ½(w²/σ)·(t − s)·ε̂ + w·√(t − s)·z

Where α = 0, at the start of schedules that reach it, g² is infinite and one step of whatever length
replaces the noise altogether. A w of one's own can be finite there.

Source: Su, kexue.fm/archives/9209 and 9228; Song et al., arXiv 2011.13456; Karras et al., arXiv
2206.00364, equation 6; Ma et al., arXiv 2401.08740 (w chosen freely). First order in law.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ropewalk.blocks.diffusion.checks import wide
from ropewalk.blocks.diffusion.process import Process
from ropewalk.blocks.diffusion.solvers.solver import Moment, Run, Solver, Span, State, Stepped


@dataclass(frozen=True)
class SDE(Solver):
    """Euler–Maruyama; stochasticity η scales w², 1 by default.

    Attributes:
        diffusion: w²(t) at η = 1, a function of a 0-d float64 time; None for g².
    """

    name: ClassVar[str] = "sde"
    kinds: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    stochasticity: ClassVar[float | None] = 1.0
    order: ClassVar[int] = 1
    diffusion: Callable[[Tensor], Tensor] | None = None

    def step(self, run: Run, x: State, span: Span, memory: Any) -> Stepped:
        t, s, lands = span
        x0, _ = run.data(x, t)
        if lands:
            return Stepped(x0, x0)
        squared = self._squared(run, t)
        if squared.isinf():
            return Stepped(run.move(x, x0, span, 1.0), x0)
        schedule, dtype, duration = run.process.schedule, x.dtype, t - s
        x, predicted = x.to(wide(x)), x0.to(wide(x))
        noise = run.process.noise(x, predicted, t)
        on_data = schedule.alpha(s) - schedule.alpha(t)
        on_noise = (
            schedule.sigma(s) - schedule.sigma(t) - duration * squared / (2 * schedule.sigma(t))
        )
        x = x + on_data.to(x) * predicted + on_noise.to(x) * noise
        if squared > 0:
            x = x + (squared * duration).sqrt().to(x) * run.normal(x)
        return Stepped(x.to(dtype), x0)

    def _squared(self, run: Run, t: Moment) -> Moment:
        """w²(t)."""
        if self.diffusion is not None:
            return run.stochasticity * self.diffusion(t)
        if run.stochasticity == 0:
            return t.new_zeros(())
        return run.stochasticity * forward_diffusion(run.process, t)


def forward_diffusion(process: Process, t: Moment) -> Moment:
    """g², the noise that the forward process adds per time; ∞ where α = 0."""
    schedule = process.schedule
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    grown = schedule.sigma_derivative(t) - sigma * schedule.alpha_derivative(t) / alpha
    return 2 * sigma * grown
