"""Rotary attention by attention that exists: near and far, merged by logsumexp.

launch.py    `forward` and `backward` of a problem, and what is `unsupported`
parts.py     the branches of a rule as ordinary attention
turning.py   the rotation in few passes over memory
merge.py     attention to disjoint sets of keys, merged by logsumexp
library.py   what is asked of a library
cpu.py       torch's fused attention for CPUs
tiles.py     how windowed attention is cut into its calls
cuda.py      flash-attn, and the flash attention inside torch
"""

from ropewalk.kernels.rotary_attention.flash.launch import backward, forward, unsupported

__all__ = ["backward", "forward", "unsupported"]
