"""Rectified flow: straight lines from data to noise, α = 1 − t and σ = t.

Also called linear, or the conditional optimal-transport path. Its severity is t itself.

Source: Liu et al., Flow Straight and Fast, arXiv 2209.03003; Lipman et al., arXiv 2210.02747.
"""

from dataclasses import dataclass

import torch

from ropewalk.blocks.diffusion.schedule.schedule import Schedule, Times


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """α = 1 − t, σ = t.

    Example:
        >>> RectifiedFlow().log_snr(0.5)
        tensor(0., dtype=torch.float64)
    """

    def _alpha(self, t: Times) -> Times:
        return 1 - t

    def _sigma(self, t: Times) -> Times:
        return t.clone()

    def _alpha_derivative(self, t: Times) -> Times:
        return -torch.ones_like(t)

    def _sigma_derivative(self, t: Times) -> Times:
        return torch.ones_like(t)

    def _time_at(self, log_snr: Times) -> Times:
        return (-log_snr / 2).sigmoid()
