"""Training denoisers: losses, times, weightings, the average of the weights.

loss.py              denoising_loss
times.py             which times are drawn
weighting.py         how much each counts
learned_variance.py  the bound of models that learn their variance
ema.py               EMA, the running average of a model's weights
reflow.py            reflow_pairs: noise and data that a flow connects
"""

from ropewalk.blocks.diffusion.train.ema import EMA
from ropewalk.blocks.diffusion.train.learned_variance import LearnedVariance
from ropewalk.blocks.diffusion.train.loss import denoising_loss
from ropewalk.blocks.diffusion.train.reflow import ReflowPairs, reflow_pairs
from ropewalk.blocks.diffusion.train.times import Knots, LogitNormal, LogSNRNormal, Times, Uniform
from ropewalk.blocks.diffusion.train.weighting import MinSNR, Weighting

__all__ = [
    "EMA",
    "Knots",
    "LearnedVariance",
    "LogSNRNormal",
    "LogitNormal",
    "MinSNR",
    "ReflowPairs",
    "Times",
    "Uniform",
    "Weighting",
    "denoising_loss",
    "reflow_pairs",
]
