"""Diffusion: any schedule × process × parametrisation × guidance × solver, t = 0 data, t = 1 noise.

schedule/           α and σ over time
parametrisation.py  what a model's output means
process/            how data is corrupted, and how to solve for the noise
degradations.py     blur, pixelate, inpaint, fade: for the cold process
step.py             the universal step: solve for the noise, corrupt again, a little less
predict.py          the model as a sampler sees it
guidance/           functions of its predictions that steer them
solvers/            from one time to the next: DDIM, DDPM, EDM's Heun, DPM-Solver++, the SDEs
sampler/            sample: from noise to data with any of them
ode/                sample_ode, log_likelihood: adaptive steps and densities, by torchdiffeq
train/              denoising_loss, its times and weightings, EMA, reflow pairs
diffusers_adapter/  diffusers' schedulers for our models, its models for our sampler
checks.py, random.py  what all of them check, and draw with

Everything that is needed in general can be had from here. torchdiffeq is imported when it is first
needed, and diffusers not at all.
"""

from ropewalk.blocks.diffusion.degradations import DEGRADATIONS, Blur, Fade, Inpaint, Pixelate
from ropewalk.blocks.diffusion.diffusers_adapter import sample_with_scheduler, wrap_diffusers
from ropewalk.blocks.diffusion.guidance import (
    AutoGuidance,
    Classifier,
    ClassifierFree,
    Compose,
    Guidance,
    Interval,
    Similarity,
)
from ropewalk.blocks.diffusion.ode import log_likelihood, sample_ode
from ropewalk.blocks.diffusion.parametrisation import (
    PARAMETRISATIONS,
    Parametrisation,
    convert,
    gain,
)
from ropewalk.blocks.diffusion.predict import Prediction, Predictor
from ropewalk.blocks.diffusion.process import Cold, Edit, Gaussian, Mask, PoissonFlow, Process
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.schedule import (
    Cosine,
    Karras,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Shifted,
    Sigmoid,
    Tabulated,
)
from ropewalk.blocks.diffusion.solvers import (
    SDE,
    SOLVERS,
    Ancestral,
    DPMPlusPlus2M,
    Euler,
    Heun,
    Renoise,
    Solver,
)
from ropewalk.blocks.diffusion.step import ancestral_rho, universal_step
from ropewalk.blocks.diffusion.train import (
    EMA,
    Knots,
    LearnedVariance,
    LogitNormal,
    LogSNRNormal,
    MinSNR,
    ReflowPairs,
    Uniform,
    denoising_loss,
    reflow_pairs,
)

__all__ = [
    "Ancestral",
    "AutoGuidance",
    "Blur",
    "Classifier",
    "ClassifierFree",
    "Cold",
    "Compose",
    "Cosine",
    "DEGRADATIONS",
    "DPMPlusPlus2M",
    "EMA",
    "Edit",
    "Euler",
    "Fade",
    "Gaussian",
    "Guidance",
    "Heun",
    "Inpaint",
    "Interval",
    "Karras",
    "Knots",
    "LearnedVariance",
    "LinearBeta",
    "LogSNRNormal",
    "LogitNormal",
    "Mask",
    "MinSNR",
    "PARAMETRISATIONS",
    "Parametrisation",
    "Pixelate",
    "PoissonFlow",
    "Prediction",
    "Predictor",
    "Process",
    "RectifiedFlow",
    "ReflowPairs",
    "Renoise",
    "SDE",
    "SOLVERS",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "Similarity",
    "Solver",
    "Tabulated",
    "Uniform",
    "ancestral_rho",
    "convert",
    "denoising_loss",
    "wrap_diffusers",
    "gain",
    "log_likelihood",
    "reflow_pairs",
    "sample",
    "sample_ode",
    "sample_with_scheduler",
    "universal_step",
]
