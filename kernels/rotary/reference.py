"""Rotation of pairs of dimensions, the equation in torch.

    (x_a, x_b) ← (x_a cos φ − x_b sin φ, x_b cos φ + x_a sin φ)

for every pair (a, b) of dimensions, where φ = position × inverse frequency of the pair (RoFormer,
arXiv 2104.09864, §3.2). The layouts differ only in which dimensions are paired:

    half         (i, i + rotary_dim/2)   GPT-NeoX, Llama, Qwen, …
    interleaved  (2i, 2i + 1)            RoFormer, GPT-J, GLM, Cohere, …

Dimensions from rotary_dim on pass through. The work is one read and one write of x.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.shapes import Layout


def rotate_reference(
    x: Float[Tensor, "*batch head_dim"],
    cos: Float[Tensor, "*#batch pairs"],
    sin: Float[Tensor, "*#batch pairs"],
    layout: Layout,
) -> Float[Tensor, "*batch head_dim"]:
    """Rotates the leading 2·pairs dimensions of `x`; arguments as in `rotate`, unchecked."""
    rotary_dim = 2 * cos.shape[-1]
    # Half-precision angles or products lose the position; only the result is rounded.
    compute_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = cos.to(compute_dtype), sin.to(compute_dtype)
    rotated_part = x[..., :rotary_dim].to(compute_dtype)
    if layout == "half":
        first, second = rotated_part.chunk(2, dim=-1)
    else:
        first, second = rotated_part[..., 0::2], rotated_part[..., 1::2]
    turned = (first * cos - second * sin, second * cos + first * sin)
    result = torch.cat(turned, -1) if layout == "half" else torch.stack(turned, -1).flatten(-2)
    result = result.to(x.dtype)
    if rotary_dim == x.shape[-1]:
        return result
    return torch.cat((result, x[..., rotary_dim:].expand(*result.shape[:-1], -1)), dim=-1)
