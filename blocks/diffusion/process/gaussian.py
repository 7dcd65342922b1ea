"""The Gaussian process: x_t = α(t)·x₀ + σ(t)·ε with ε standard normal.

With a variance-preserving schedule it is DDPM's, with `RectifiedFlow` flow matching, with `Karras`
EDM's. Source: Ho, Jain and Abbeel, arXiv 2006.11239; Su, kexue.fm/archives/9119, 9164 and 9181.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.diffusion.checks import Time, require_data
from ropewalk.blocks.diffusion.parametrisation import Parametrisation, parametrisation
from ropewalk.blocks.diffusion.process.affine import Affine, mix
from ropewalk.blocks.diffusion.process.process import check_rho, require_schedule
from ropewalk.blocks.diffusion.random import normal_like
from ropewalk.blocks.diffusion.schedule import Schedule


@dataclass(frozen=True)
class Gaussian(Affine):
    """x_t = αx₀ + σε, ε ~ N(0, I).

    Attributes:
        schedule: α and σ.
        parametrisation: what the model's output means; a name of `PARAMETRISATIONS` or an object.

    Raises:
        TypeError: the schedule is not a `Schedule`.
        ValueError: the parametrisation is not known.

    Example:
        >>> process = Gaussian(RectifiedFlow(), "flow")
        >>> x0 = torch.randn(2, 1, 8, 8)
        >>> noise = process.fresh(x0)
        >>> x_t = process.corrupt(x0, noise, torch.tensor([0.2, 0.7]))
    """

    kind: ClassVar[str] = "gaussian"
    schedule: Schedule
    parametrisation: str | Parametrisation = "v"

    def __post_init__(self) -> None:
        require_schedule(self.schedule)
        parametrisation(self.parametrisation)

    def fresh(
        self, x0: Float[Tensor, "batch ..."], *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Standard normal noise."""
        require_data("x0", x0)
        return normal_like(x0, generator)

    def renew(
        self,
        noise: Float[Tensor, "batch ..."],
        rho: Time,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """√(1 − ρ²)·ε + ρ·z with z standard normal; nothing is drawn for the number ρ = 0."""
        require_data("noise", noise)
        part = check_rho(rho, noise)
        if isinstance(part, float) and part == 0:
            return noise
        return mix(noise, self.fresh(noise, generator=generator), part)
