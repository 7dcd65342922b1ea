"""Corruption processes: how data becomes noise, and how to solve for that noise.

process.py       Process, what they have in common; Continuous for floating-point data
affine.py        Affine, what x_t = αx₀ + σε have in common
gaussian.py      Gaussian
poisson_flow.py  PoissonFlow: heavy tails
cold.py          Cold: any degradation, no noise; cold_start.py has the laws of its prior
discrete.py      Discrete, what processes on tokens have in common
mask.py          Mask: tokens are hidden
edit.py          Edit: tokens are replaced by others
"""

from ropewalk.blocks.diffusion.process.affine import Affine
from ropewalk.blocks.diffusion.process.cold import Cold
from ropewalk.blocks.diffusion.process.discrete import Discrete
from ropewalk.blocks.diffusion.process.edit import Edit, EditNoise
from ropewalk.blocks.diffusion.process.gaussian import Gaussian
from ropewalk.blocks.diffusion.process.mask import Mask
from ropewalk.blocks.diffusion.process.poisson_flow import PoissonFlow
from ropewalk.blocks.diffusion.process.process import Continuous, Process

__all__ = [
    "Affine",
    "Cold",
    "Continuous",
    "Discrete",
    "Edit",
    "EditNoise",
    "Gaussian",
    "Mask",
    "PoissonFlow",
    "Process",
]
