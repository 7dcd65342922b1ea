"""Absolute positions of grids: fixed sines and cosines, added to the tokens once.

Each axis has a section of the width: sin(place · θ), cos(place · θ), with the spectrum of RoPE,
θ_i = base^(−2i/section). The last axis comes first, as in the published DiT (arXiv 2212.09748),
whose table this equals. Frequency rules apply to the spectrum of each axis as they do to RoPE's.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ropewalk.blocks.rotary import Default, FrequencyRule

BASE = 10000.0


def pairs_of_axis(dim: int, axes: int) -> int:
    """Pairs of dimensions, a sine and a cosine each, that every axis has."""
    return dim // (2 * axes)


def absolute_positions(
    coordinates: Num[Tensor, "tokens axes"],
    dim: int,
    *,
    base: float = BASE,
    frequency: Sequence[FrequencyRule] | None = None,
) -> Float[Tensor, "tokens dim"]:
    """Sines and cosines of places.

    Args:
        coordinates: integers or floats.
        dim: width; what axes cannot share equally, in pairs, is left zero.
        base: of the spectrum.
        frequency: a rule for each axis.

    Returns:
        Float32.
    """
    axes = coordinates.shape[-1]
    section = 2 * pairs_of_axis(dim, axes)
    rules = [Default()] * axes if frequency is None else frequency
    parts = []
    for axis in reversed(range(axes)):
        inverse = rules[axis].inverse_frequencies(section, base).to(coordinates.device)
        angles = coordinates[:, axis, None].to(torch.float32) * inverse
        factor = rules[axis].attention_factor()
        parts += [angles.sin() * factor, angles.cos() * factor]
    if section * axes < dim:
        parts.append(parts[0].new_zeros(len(coordinates), dim - section * axes))
    return torch.cat(parts, dim=-1)
