"""Poisson flow (PFGM++): x_t = α(t)·x₀ + σ(t)·ε with a noise whose tails are heavy.

Data of N numbers is put into N + D dimensions, where it charges a field. Its lines give the noise

    ε = √(Dβ/(1 − β))·u,    β ~ Beta(N/2, D/2),  u uniform on the sphere

the radius r = σ√D of the paper at α = 1. D → ∞ is Gaussian noise, D = 1 the first Poisson flow.
Between them D trades robustness against rigidity. The same law is a mixture of Gaussians with a
shared precision, which is how noise is drawn and renewed here:

    ε = z/√w,    w ~ Gamma(D/2, rate D/2)
    w given ε  ~ Gamma((D + N)/2, rate (D + |ε|²)/2)

The deterministic step is the Gaussian one, (x − x̂₀)/σ: Gaussian samplers and networks carry over.

Source: Xu et al., arXiv 2302.04265, §3 and theorem 4.1; Su, kexue.fm/archives/9370.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_number
from ropewalk.blocks.diffusion.checks import Time, require_data
from ropewalk.blocks.diffusion.parametrisation import Parametrisation, parametrisation
from ropewalk.blocks.diffusion.process.affine import Affine, mix
from ropewalk.blocks.diffusion.process.process import check_rho, require_schedule
from ropewalk.blocks.diffusion.random import gamma_like, normal_like
from ropewalk.blocks.diffusion.schedule import Schedule


@dataclass(frozen=True)
class PoissonFlow(Affine):
    """x_t = αx₀ + σε with the noise of PFGM++.

    Attributes:
        D: the dimensions that are added, above 0; `math.inf` is Gaussian.
        schedule: α and σ.
        parametrisation: what the model's output means; a name of `PARAMETRISATIONS` or an object.

    Raises:
        TypeError: D is not a number, or the schedule not a `Schedule`.
        ValueError: D is not above 0, or the parametrisation is not known.
    """

    kind: ClassVar[str] = "poisson_flow"
    D: float
    schedule: Schedule
    parametrisation: str | Parametrisation = "v"

    def __post_init__(self) -> None:
        require_number("PoissonFlow", "a number > 0", D=self.D)
        if not self.D > 0:
            raise ValueError(f"PoissonFlow.D: expected a number > 0, got {self.D!r}")
        require_schedule(self.schedule)
        parametrisation(self.parametrisation)

    def fresh(
        self, x0: Float[Tensor, "batch ..."], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Noise of the data's shape; the radius is drawn in float64."""
        require_data("x0", x0)
        half = torch.full(x0.shape[:1], self.D / 2, dtype=torch.float64, device=x0.device)
        return self._draw(x0, half, half, generator)

    def renew(
        self,
        noise: Float[Tensor, "batch ..."],
        rho: Time,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """√(1 − ρ²)·ε + ρ·z/√w with w drawn given ε: exactly the law of ε, its radius included."""
        require_data("noise", noise)
        part = check_rho(rho, noise)
        if isinstance(part, float) and part == 0:
            return noise
        size = math.prod(noise.shape[1:])
        squared = noise.to(torch.float64).square().reshape(noise.shape[0], size).sum(1)
        shape = torch.full_like(squared, (self.D + size) / 2)
        return mix(noise, self._draw(noise, shape, (self.D + squared) / 2, generator), part)

    def _draw(
        self,
        like: Float[Tensor, "batch ..."],
        shape: Float[Tensor, " batch"],
        rate: Float[Tensor, " batch"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "batch ..."]:
        """z/√w with w ~ Gamma(shape, rate), one w per sample."""
        z = normal_like(like, generator)
        added = self.D
        if added == math.inf:
            return z
        precision = gamma_like(shape, generator) / rate
        scale = precision.rsqrt().reshape(-1, *(1,) * (like.ndim - 1))
        dtype = torch.promote_types(like.dtype, torch.float32)
        return (z.to(dtype) * scale.to(dtype)).to(like.dtype)
