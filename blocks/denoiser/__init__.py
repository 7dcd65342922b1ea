"""The diffusion transformer.

model.py         DiffusionTransformer: the forward from patches to patches
presets.py       the published sizes, S to XL
checkpoints.py   from_dit, from_diffusers: weights of others
options.py       what can be chosen, and what is refused
parts.py         the parts, made from the options; their initialisation
block.py         a block: two modulated halves, fused across their borders
remaking.py      norms that are made again in the backward instead of being kept
mixers.py        attention with n-dimensional RoPE; recurrences
feed_forward.py  SwiGLU, GELU, Monarch
modulation.py    adaLN: full, shared, low-rank
conditioning.py  embeddings of time and class
patches.py       arrays as patches and back
layout.py        where tokens lie: one size, or several end to end
positions.py     absolute positions
resolution.py    other sizes than the trained one
inputs.py        checks of a call
"""

from ropewalk.blocks.denoiser.checkpoints import from_diffusers, from_dit
from ropewalk.blocks.denoiser.model import DiffusionTransformer
from ropewalk.blocks.denoiser.presets import PRESETS, PUBLISHED, preset

__all__ = [
    "PRESETS",
    "PUBLISHED",
    "DiffusionTransformer",
    "from_diffusers",
    "from_dit",
    "preset",
]
