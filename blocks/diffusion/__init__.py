"""Diffusion: any schedule × process × parametrisation × guidance × solver, t = 0 data, t = 1 noise.

schedule/           α and σ over time
parametrisation.py  what a model's output means
process/            how data is corrupted, and how to solve for the noise
degradations.py     blur, pixelate, inpaint, fade: for the cold process
step.py             the universal step: solve for the noise, corrupt again, a little less
predict.py          the model as a sampler sees it
guidance/           functions of its predictions that steer them
checks.py, random.py  what all of them check, and draw with
"""

from ropewalk.blocks.diffusion.guidance import (
    AutoGuidance,
    Classifier,
    ClassifierFree,
    Compose,
    Guidance,
    Interval,
    Similarity,
)
from ropewalk.blocks.diffusion.parametrisation import (
    PARAMETRISATIONS,
    Parametrisation,
    convert,
    gain,
)
from ropewalk.blocks.diffusion.predict import Prediction, Predictor
from ropewalk.blocks.diffusion.process import Cold, Edit, Gaussian, Mask, PoissonFlow, Process
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
from ropewalk.blocks.diffusion.step import ancestral_rho, universal_step

__all__ = [
    "AutoGuidance",
    "Classifier",
    "ClassifierFree",
    "Cold",
    "Compose",
    "Cosine",
    "Edit",
    "Gaussian",
    "Guidance",
    "Interval",
    "Karras",
    "LinearBeta",
    "Mask",
    "PARAMETRISATIONS",
    "Parametrisation",
    "PoissonFlow",
    "Prediction",
    "Predictor",
    "Process",
    "RectifiedFlow",
    "Schedule",
    "Shifted",
    "Sigmoid",
    "Similarity",
    "Tabulated",
    "ancestral_rho",
    "convert",
    "gain",
    "universal_step",
]
