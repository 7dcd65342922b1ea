"""The universal step: solve for the noise, corrupt again, a little less.

    ε̂ = F_t⁻¹(x̂₀, x_t)        x_s = F_s(x̂₀, √(1 − ρ²)·ε̂ + ρ·z)

For x_t = αx₀ + σε the part ρ of the noise that is replaced makes the sampler:

    ρ = 0                                 DDIM, EDM's Euler, rectified flow's Euler
    ρ² = 1 − (α_tσ_s/(α_sσ_t))²           DDPM's ancestral step; η times it DDIM's
    ρ = 1                                 x̂₀ corrupted afresh: consistency models' sampling

For other processes the same line is cold diffusion's improved sampling (arXiv 2208.09392, algorithm
2), unmasking, or Poisson flow's step. Source: Su, kexue.fm/archives/9262.
"""

import torch
from torch import Tensor

from ropewalk.blocks.diffusion.checks import Time, as_time
from ropewalk.blocks.diffusion.process import Process
from ropewalk.blocks.diffusion.schedule import Schedule


def universal_step(
    process: Process,
    x_t: Tensor,
    x0: Tensor,
    t: Time,
    s: Time,
    rho: Time,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """x_s from x_t and a predicted x̂₀.

    Half precision is widened once, computed in float32 and rounded once.

    Args:
        process: how data is corrupted.
        x_t: the present state (batch, …).
        x0: x̂₀, what the model takes the data to be; of x_t's shape.
        t: the present time; a number, 0-d or (batch,).
        s: the time to step to, below t as a rule; likewise.
        rho: the part of the noise that is replaced, in [0, 1]; likewise.
        generator: for the new noise.

    Returns:
        x_s, of x_t's shape and dtype.

    Raises:
        TypeError, ValueError: what the process's methods raise.
    """
    dtype = x_t.dtype
    if x_t.is_floating_point():
        x_t = x_t.to(torch.promote_types(dtype, torch.float32))
        x0 = x0.to(x_t.dtype)
    noise = process.noise(x_t, x0, t, generator=generator)
    noise = process.renew(noise, rho, generator=generator)
    return process.corrupt(x0, noise, s).to(dtype)


def ancestral_rho(schedule: Schedule, t: Time, s: Time) -> Tensor:
    """ρ of DDPM's ancestral step from t to s ≤ t: ρ² = 1 − exp(λ_t − λ_s) with λ the log-SNR.

    The difference of log-SNRs keeps its digits for small steps, and holds where a λ is infinite.

    Args:
        schedule: α and σ.
        t: the present time.
        s: the time to step to.

    Returns:
        ρ in [0, 1], in the shape to which t and s broadcast; 0 where s ≥ t.
    """
    t, s = as_time(t), as_time(s, "s")
    squared = -torch.expm1(schedule.log_snr(t) - schedule.log_snr(s))
    # λ_t − λ_s is undefined between two infinities of one sign, where s = t.
    return torch.where(s >= t, 0.0, squared.clamp(min=0.0)).sqrt()
