"""The variance of a step that a network learned beside its prediction.

The step from t to s < t has the posterior N(μ(x₀, x_t), β̃), β̃ = ρ²σ_s², and the forward process
between the two times adds β = ρ²σ_t², with ρ² = 1 − (α_tσ_s/(α_sσ_t))². The network's second half
of channels, r in [−1, 1], goes between the logarithms of the two:

    ln variance = ½(1 + r)·ln β + ½(1 − r)·ln β̃

Source: Nichol and Dhariwal, arXiv 2102.09672, §3.1, equation 15.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.diffusion.schedule import Schedule
from ropewalk.blocks.diffusion.step import ancestral_rho


def posterior_log_variance(
    raw: Float[Tensor, "batch ..."],
    schedule: Schedule,
    t: Tensor,
    s: Tensor,
    *,
    floor: Tensor | float = 0.0,
) -> Float[Tensor, "batch ..."]:
    """The logarithm of the variance that a network's output r stands for, of the step from t to s.

    Args:
        raw: r, the second half of the network's channels; −1 is β̃ and 1 is β.
        schedule: of the process.
        t: the time, 0-d or broadcasting against `raw`.
        s: the time that is stepped to, below t.
        floor: the least β̃, for a step to σ = 0, whose β̃ is 0.

    Returns:
        Of the shape and dtype of `raw`.
    """
    t, s = t.double(), s.double()
    share = ancestral_rho(schedule, t, s).square()
    widest = (share * schedule.sigma(t).square()).log()
    least = torch.as_tensor(floor, dtype=torch.float64, device=share.device)
    narrowest = torch.maximum(share * schedule.sigma(s).square(), least).log()
    between = (raw + 1) / 2
    return between * widest.to(raw) + (1 - between) * narrowest.to(raw)
