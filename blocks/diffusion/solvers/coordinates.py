"""Coordinates in which the probability flow is an ordinary differential equation with smooth sides.

Along the flow of an affine process x_t = αx₀ + σε, dx = α'x̂₀dt + σ'ε̂dt. Divided by a scale and
told by another clock τ it is dy/dτ = slope, which a method of higher order can follow:

    name    y                 τ              slope                       ends
    sigma   x/α               σ/α            ε̂                           τ = ∞ where α = 0
    flow    x/(α + σ)         σ/(α + σ)      ε̂ − x̂₀                      always finite: τ ≤ 1
    angle   x/√(α² + σ²)      atan(σ/α)      (αε̂ − σx̂₀)/√(α² + σ²)       always finite: τ ≤ π/2

"sigma" is EDM's (arXiv 2206.00364, equation 81 with s = α), "flow" is rectified flow's own, and
"angle" is that of the v-parametrisation (arXiv 2202.00512, appendix D). Euler's method gives the
same in all three; it is the step of DDIM.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ropewalk.blocks.diffusion.schedule import Schedule

Coordinate = Literal["sigma", "flow", "angle"]
COORDINATES: tuple[Coordinate, ...] = ("sigma", "flow", "angle")


class Place(NamedTuple):
    """A time in a coordinate; all 0-d.

    Attributes:
        scale: x / y.
        clock: τ.
        on_data: the factor of x̂₀ in the slope.
        on_noise: the factor of ε̂ in the slope.
    """

    scale: Tensor
    clock: Tensor
    on_data: Tensor
    on_noise: Tensor


def place(coordinate: Coordinate, alpha: Tensor, sigma: Tensor) -> Place:
    """Where α and σ lie in the coordinate."""
    one = torch.ones_like(alpha)
    if coordinate == "sigma":
        return Place(alpha, sigma / alpha, 0 * one, one)
    if coordinate == "flow":
        return Place(alpha + sigma, sigma / (alpha + sigma), -one, one)
    radius = (alpha.square() + sigma.square()).sqrt()
    return Place(radius, torch.atan2(sigma, alpha), -sigma / radius, alpha / radius)


def log_snr_at(coordinate: Coordinate, clock: Tensor) -> Tensor:
    """λ = 2·log(α/σ) at a value of the clock."""
    if coordinate == "sigma":
        return -2 * clock.log()
    if coordinate == "flow":
        return 2 * (torch.log1p(-clock) - clock.log())
    return -2 * clock.tan().log()


def suited(schedule: Schedule, start: Tensor) -> Coordinate:
    """EDM's "sigma" where α at the start is above 0, and "flow" where it is 0."""
    return "sigma" if float(schedule.alpha(start)) > 0 else "flow"
