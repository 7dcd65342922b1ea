"""What the processes x_t = α(t)·x₀ + σ(t)·ε share, whatever law their noise has."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.diffusion.checks import Time, require_same_shape
from ropewalk.blocks.diffusion.parametrisation import reciprocal
from ropewalk.blocks.diffusion.process.process import Continuous, sample_mean


class Affine(Continuous):
    """Base class of the processes x_t = α(t)·x₀ + σ(t)·ε; subclasses say what law ε has."""

    def corrupt(
        self, x0: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], t: Time
    ) -> Float[Tensor, "batch ..."]:
        """x_t = αx₀ + σε in x0's dtype: computed in float32 at least, rounded once.

        Raises:
            TypeError: the data are not floating-point.
            ValueError: the noise has another shape than the data, or t is no time for them.
        """
        alpha, sigma = self.coefficients(x0, t)
        require_same_shape("noise", noise, "x0", x0)
        return (alpha * x0.to(alpha.dtype) + sigma * noise.to(alpha.dtype)).to(x0.dtype)

    def noise(
        self,
        x_t: Float[Tensor, "batch ..."],
        x0: Float[Tensor, "batch ..."],
        t: Time,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """ε = (x_t − αx₀)/σ in x_t's dtype; 0 where σ is 0 and x_t tells nothing about it."""
        alpha, sigma = self.coefficients(x_t, t)
        require_same_shape("x0", x0, "x_t", x_t)
        residual = x_t.to(alpha.dtype) - alpha * x0.to(alpha.dtype)
        return (residual * reciprocal(sigma)).to(x_t.dtype)

    def prior(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "batch ..."]:
        """σ(1)·ε: what x₁ is where α(1) is 0 or the noise far larger than the data."""
        like = torch.empty(*shape, device=device, dtype=dtype)
        noise = self.fresh(like, generator=generator)
        return self.corrupt(torch.zeros_like(like), noise, 1.0)

    def loss(
        self,
        output: Tensor,
        x0: Float[Tensor, "batch ..."],
        x_t: Float[Tensor, "batch ..."],
        noise: Float[Tensor, "batch ..."],
        t: Time,
    ) -> Float[Tensor, " batch"]:
        """The mean squared error of the output against its target, in the parametrisation's space.

        Args:
            output: the model's, of x_t's shape.
            x0: the data, of about unit size, as in [−1, 1].
            x_t: `corrupt(x0, noise, t)`.
            noise: what it was corrupted with.
            t: the times.

        Raises:
            TypeError: a tensor is not floating-point.
            ValueError: shapes differ, or t is no time for them.
        """
        self._check_output(output, x_t)
        require_same_shape("x0", x0, "x_t", x_t)
        require_same_shape("noise", noise, "x_t", x_t)
        alpha, sigma = self.coefficients(x0, t)
        # Not rounded to x0's dtype: the target is compared, not stored.
        target = self.reading.target(x0.to(alpha.dtype), noise.to(alpha.dtype), alpha, sigma)
        return sample_mean((output.to(alpha.dtype) - target).square())


def mix(
    noise: Float[Tensor, "batch ..."], fresh: Float[Tensor, "batch ..."], rho: Tensor | float
) -> Float[Tensor, "batch ..."]:
    """√(1 − ρ²)·noise + ρ·fresh in float32 at least, rounded once."""
    dtype = torch.promote_types(noise.dtype, torch.float32)
    part = torch.as_tensor(rho, dtype=dtype)
    kept = ((1 - part) * (1 + part)).sqrt()
    return (kept * noise.to(dtype) + part * fresh.to(dtype)).to(noise.dtype)
