"""Eigenvalues λ = exp(−e^ν + i e^θ): inside the unit disc whatever ν and θ are.

At initialisation |λ|² is uniform in [r_min², r_max²], which makes λ uniform by area on that ring
if its phase is uniform, too. A state driven by white noise of variance 1 has the variance
1/(1 − |λ|²), so that its input is multiplied by γ = √(1 − |λ|²), whose logarithm is learned.

Source: Orvieto et al., arXiv 2303.06349, lemma 3.2 and section 3.4; kexue.fm/archives/9554.
Pitfall: 1 − |λ|² is computed as −expm1(−2e^ν); near |λ| = 1 the difference itself has no digits.
"""

import math

import torch
from torch import Tensor

from ropewalk.blocks.checks import require_number, require_positive

# Uniform draws in float32 may be 0 or round to 1, where ν and θ are infinite.
EDGE = 2.0**-24


def check_ring(owner: str, r_min: float, r_max: float) -> None:
    """Refuses radii that are not 0 ≤ r_min < r_max ≤ 1."""
    require_number(owner, "a number in [0, 1]", r_min=r_min, r_max=r_max)
    if not 0 <= r_min < r_max <= 1:
        raise ValueError(
            f"{owner}: expected 0 ≤ r_min < r_max ≤ 1, the ring that |λ| is drawn from, got "
            f"r_min={r_min!r}, r_max={r_max!r}"
        )


def check_phase(owner: str, max_phase: float) -> None:
    """Refuses a phase that is not in (0, 2π]."""
    require_positive(owner, max_phase=max_phase)
    if max_phase > 2 * math.pi:
        raise ValueError(f"{owner}.max_phase: expected at most 2π, got {max_phase!r}")


@torch.no_grad()
def draw_radii(nu_log: Tensor, r_min: float, r_max: float) -> None:
    """Fills ν such that |λ|² is uniform in [r_min², r_max²]."""
    squares = torch.rand_like(nu_log) * (r_max**2 - r_min**2) + r_min**2
    nu_log.copy_((-0.5 * squares.clamp(EDGE, 1 - EDGE).log()).log())


@torch.no_grad()
def draw_phases(theta_log: Tensor, max_phase: float) -> None:
    """Fills θ such that the phase is uniform in [0, max_phase]."""
    theta_log.copy_((torch.rand_like(theta_log) * max_phase).clamp(min=EDGE).log())


@torch.no_grad()
def normalise(gamma_log: Tensor, nu_log: Tensor) -> None:
    """Fills log γ with that of √(1 − |λ|²)."""
    gamma_log.copy_(0.5 * (-torch.expm1(-2 * nu_log.exp())).log())


def radii(nu_log: Tensor) -> Tensor:
    """|λ| = exp(−e^ν)."""
    return (-nu_log.exp()).exp()


def eigenvalues(nu_log: Tensor, theta_log: Tensor) -> Tensor:
    """λ, complex, from ν and θ."""
    size, phase = radii(nu_log), theta_log.exp()
    # Not torch.polar: compilers have no code for complex arithmetic.
    return torch.view_as_complex(torch.stack((size * phase.cos(), size * phase.sin()), dim=-1))
