"""The probability flow by a solver library: adaptive steps, and exact likelihoods.

flow.py        the flow as a differential equation in smooth coordinates, and torchdiffeq
sampling.py    sample_ode: samples
likelihood.py  log_likelihood: the density that the samples have
"""

from ropewalk.blocks.diffusion.ode.likelihood import log_likelihood
from ropewalk.blocks.diffusion.ode.sampling import sample_ode

__all__ = ["log_likelihood", "sample_ode"]
