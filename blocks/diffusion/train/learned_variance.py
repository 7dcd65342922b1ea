"""How a network's variance is trained, beside its prediction: the hybrid loss.

What is trained is the variance of `ropewalk.blocks.diffusion.solvers.variance`, by the variational
bound of the step from t to s = t − 1/steps, in **bits per element**:

    KL(q(x_s | x_t, x₀) ‖ p(x_s | x_t))        −log₂ p(x₀ | x_t) for the last step, to s = 0

In it the prediction of the mean is held fixed, so that the bound reaches the variance only.

Source: Nichol and Dhariwal, arXiv 2102.09672, §3.1, equation 16.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.diffusion.checks import wide
from ropewalk.blocks.diffusion.schedule import Schedule
from ropewalk.blocks.diffusion.solvers.variance import posterior_log_variance
from ropewalk.blocks.diffusion.step import ancestral_rho


@dataclass(frozen=True)
class LearnedVariance:
    """The hybrid loss: the process's own plus `weight` times the bound.

    Attributes:
        steps: into how many equal steps the bound cuts time; 1000 as the discrete models.
        weight: of the bound, in bits per element, of one step. 1 is what DiT trains with; the paper
            has 0.001 times the sum over 1000 steps, which is the same in expectation.
        data_levels: how many equally spaced values in [−1, 1] the data has, for the last step's
            likelihood: 256 for 8-bit images; None for continuous data, of which the density counts.

    Raises:
        ValueError: a number out of range.
        TypeError: a number of the wrong kind.
    """

    steps: int = 1000
    weight: float = 1.0
    data_levels: int | None = 256

    def __post_init__(self) -> None:
        require_integer("LearnedVariance", 2, steps=self.steps)
        require_positive("LearnedVariance", weight=self.weight)
        if self.data_levels is not None:
            require_integer("LearnedVariance", 2, data_levels=self.data_levels)

    def bound(
        self,
        raw: Float[Tensor, "batch ..."],
        predicted: Float[Tensor, "batch ..."],
        x0: Float[Tensor, "batch ..."],
        schedule: Schedule,
        t: Float[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """The bound of the step from t to t − 1/steps (to 0 from t ≤ 1/steps), bits per element.

        Args:
            raw: the network's second half.
            predicted: x̂₀; no gradient reaches it.
            x0: the data.
            schedule: of the process.
            t: (batch,).
        """
        raw = raw.to(wide(raw))
        difference = predicted.detach().to(raw) - x0.to(raw)
        column = t.double().reshape(-1, *[1] * (raw.ndim - 1))
        step = 1 / self.steps
        # Half a step of slack: k/steps in float32 may lie a rounding above k/steps.
        last = column < 1.5 * step
        s = torch.where(last, torch.zeros_like(column), column - step)
        # What the step before the last one has, so that no logarithm of zero is taken.
        before_last = ancestral_rho(schedule, 2 * step, step) * schedule.sigma(step)
        log_variance = posterior_log_variance(
            raw, schedule, column, s, floor=torch.where(last, before_last.square().to(column), 0.0)
        )

        share = ancestral_rho(schedule, column, s).square()
        # μ(x₀) − μ(x̂₀): x_t is common to both.
        moved = (schedule.alpha(s) * share).to(raw) * difference
        true_variance = torch.where(last, 1.0, share * schedule.sigma(s).square()).to(raw)
        divergence = 0.5 * (
            log_variance
            - true_variance.log()
            - 1
            + (true_variance + moved.square()) * (-log_variance).exp()
        )
        surprise = self._surprise(x0.to(raw), x0.to(raw) + difference, log_variance)
        bound = torch.where(last, surprise, divergence)
        return bound.flatten(1).mean(1) / math.log(2)

    def _surprise(self, x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """−ln p(x₀), in nats, of a Gaussian, or of the share of it that rounds to x₀."""
        inverse_std = (-0.5 * log_variance).exp()
        centred = (x0 - mean) * inverse_std
        if self.data_levels is None:
            return 0.5 * (centred.square() + log_variance + math.log(2 * math.pi))
        half = inverse_std / (self.data_levels - 1)
        # The outermost values hold what lies beyond them. Of two tails the smaller is subtracted.
        inner = x0.abs() < 1 - 0.5 / (self.data_levels - 1)
        far = centred.abs()
        within = _normal_tail(far - half) - _normal_tail(far + half)
        beyond = _normal_tail(torch.where(x0 > 0, centred, -centred) - half)
        share = torch.where(inner, within, beyond)
        return -share.clamp_min(1e-12).log()


def _normal_tail(x: Tensor) -> Tensor:
    """P(N(0, 1) > x), precise far out as well."""
    return 0.5 * torch.erfc(x / math.sqrt(2))
