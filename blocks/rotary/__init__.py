"""Rotary position embedding as two small families that compose.

A *frequency rule* says how fast each plane turns, a *distance rule* which relative position a score
sees, and `LogN` scales queries by position. Any three of them go together.
"""

from ropewalk.blocks.rotary.axial import AxialRotary, axial_frequencies, grid_coordinates
from ropewalk.blocks.rotary.distance import (
    DISTANCE_RULES,
    DistanceRuleBase,
    DualChunk,
    LeakyReRoPE,
    Plain,
    ReRoPE,
    SelfExtend,
)
from ropewalk.blocks.rotary.embedding import RotaryEmbedding, cosine_sine
from ropewalk.blocks.rotary.frequency import Default, FrequencyRule, Linear, default_frequencies
from ropewalk.blocks.rotary.llama3 import Llama3
from ropewalk.blocks.rotary.log_n import LogN
from ropewalk.blocks.rotary.longrope import LongRoPE
from ropewalk.blocks.rotary.ntk import DynamicNTK, NTKAware, NTKFixed, NTKMixed
from ropewalk.blocks.rotary.orthogonal import OrthogonalRotary
from ropewalk.blocks.rotary.rope_parameters import FREQUENCY_RULES, from_rope_parameters
from ropewalk.blocks.rotary.tie import rope_tie_positions
from ropewalk.blocks.rotary.yarn import YaRN

__all__ = [
    "DISTANCE_RULES",
    "FREQUENCY_RULES",
    "AxialRotary",
    "Default",
    "DistanceRuleBase",
    "DualChunk",
    "DynamicNTK",
    "FrequencyRule",
    "LeakyReRoPE",
    "Linear",
    "Llama3",
    "LogN",
    "LongRoPE",
    "NTKAware",
    "NTKFixed",
    "NTKMixed",
    "OrthogonalRotary",
    "Plain",
    "ReRoPE",
    "RotaryEmbedding",
    "SelfExtend",
    "YaRN",
    "axial_frequencies",
    "cosine_sine",
    "default_frequencies",
    "from_rope_parameters",
    "grid_coordinates",
    "rope_tie_positions",
]
