"""Training denoisers: losses, times, weightings, the average of the weights.

ema.py        EMA, the running average of a model's weights
"""

from ropewalk.blocks.diffusion.train.ema import EMA

__all__ = ["EMA"]
