"""The linear-β schedule in continuous time: DDPM's limit of many steps.

    log α = −¼t²(β_max − β_min) − ½tβ_min        σ² = 1 − α²

σ rises like √t, so σ' is infinite at t = 0; α(1) is small (.0066 by default) but not zero. For the
discrete schedule that DDPM and DiT were trained with take `Tabulated.linear_beta`.

Source: Song et al., arXiv 2011.13456, equation 32 and appendix C.
"""

from dataclasses import dataclass

from torch.nn.functional import softplus

from ropewalk.blocks.checks import require_number, require_positive
from ropewalk.blocks.diffusion.schedule.schedule import Schedule, Times


@dataclass(frozen=True)
class LinearBeta(Schedule):
    """Variance preserving with β(t) = β_min + t(β_max − β_min).

    Attributes:
        beta_min: β at t = 0, at least 0.
        beta_max: β at t = 1, above 0 and at least beta_min.

    Raises:
        TypeError: a field is not a number.
        ValueError: a field is out of range.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        require_number("LinearBeta", beta_min=self.beta_min)
        require_positive("LinearBeta", beta_max=self.beta_max)
        if not 0 <= self.beta_min <= self.beta_max:
            raise ValueError(
                f"LinearBeta.beta_min: expected a number from 0 to beta_max = {self.beta_max}, got "
                f"{self.beta_min!r}"
            )

    def _log_alpha(self, t: Times) -> Times:
        return -0.25 * t.square() * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _alpha(self, t: Times) -> Times:
        return self._log_alpha(t).exp()

    def _sigma(self, t: Times) -> Times:
        # expm1 keeps the digits of a small σ.
        return (-(2 * self._log_alpha(t)).expm1()).sqrt()

    def _half_beta(self, t: Times) -> Times:
        return 0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))

    def _alpha_derivative(self, t: Times) -> Times:
        return -self._half_beta(t) * self._alpha(t)

    def _sigma_derivative(self, t: Times) -> Times:
        return self._half_beta(t) * (2 * self._log_alpha(t)).exp() / self._sigma(t)

    def _log_snr(self, t: Times) -> Times:
        exponent = 2 * self._log_alpha(t)
        return exponent - (-exponent.expm1()).log()

    def _time_at(self, log_snr: Times) -> Times:
        # −2·log α = log(1 + e^−λ) = ½t²(β_max − β_min) + tβ_min, by the root that never cancels.
        slope = self.beta_max - self.beta_min
        exponent = softplus(-log_snr).clamp(max=slope / 2 + self.beta_min)  # its value at t = 1
        return 2 * exponent / (self.beta_min + (self.beta_min**2 + 2 * slope * exponent).sqrt())
