"""The equation in torch: the oracle of the kernels, and what runs on a CPU.

runs.py       which samples are computed together, and their part of every tensor
forward.py    residual, norm, modulation
backward.py   gradients of all of it, with sums by sample
"""

from ropewalk.kernels.adaptive_norm.reference.backward import backward
from ropewalk.kernels.adaptive_norm.reference.forward import forward

__all__ = ["backward", "forward"]
