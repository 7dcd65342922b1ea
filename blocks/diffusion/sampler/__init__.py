"""`sample`: from noise to data, with any solver, process and guidance.

sampling.py  sample
checks.py    what is refused before the model runs
calls.py     how a model is called: not training, under its guidance
"""

from ropewalk.blocks.diffusion.sampler.sampling import Callback, Progress, sample

__all__ = ["Callback", "Progress", "sample"]
