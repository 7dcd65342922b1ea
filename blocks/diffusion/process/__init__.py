"""Corruption processes: how data becomes noise, and how to solve for that noise.

process.py   Process, what they have in common; Continuous and Affine for floating-point data
gaussian.py  Gaussian
"""

from ropewalk.blocks.diffusion.process.gaussian import Gaussian
from ropewalk.blocks.diffusion.process.process import Affine, Continuous, Process

__all__ = ["Affine", "Continuous", "Gaussian", "Process"]
