"""Rotation of pairs of dimensions, the equation in torch.

    (x_a, x_b) ← (x_a cos φ − x_b sin φ, x_b cos φ + x_a sin φ)

for every pair (a, b) of dimensions, where φ = position × inverse frequency of the pair (RoFormer,
arXiv 2104.09864, §3.2). The layouts differ only in which dimensions are paired:

    half         (i, i + rotary_dim/2)   GPT-NeoX, Llama, Qwen, …
    interleaved  (2i, 2i + 1)            RoFormer, GPT-J, GLM, Cohere, …

Dimensions from rotary_dim on pass through. The work is one read and one write of x.

`forward` and `backward` do so for queries and keys, after an RMSNorm (arXiv 1910.07467) over each
head where there are weights: z = x · w / √(mean(x²) + eps). `composite` does the same out of place,
and `composite_gradients` gives gradients of it that can be differentiated again.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.rotary.rotation import Rotation
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
    first, second = _pairs(x[..., :rotary_dim].to(compute_dtype), rotary_dim, layout)
    turned = (first * cos - second * sin, second * cos + first * sin)
    result = torch.cat(turned, -1) if layout == "half" else torch.stack(turned, -1).flatten(-2)
    result = result.to(x.dtype)
    if rotary_dim == x.shape[-1]:
        return result
    return torch.cat((result, x[..., rotary_dim:].expand(*result.shape[:-1], -1)), dim=-1)


def forward(
    query: Tensor, key: Tensor, query_out: Tensor, key_out: Tensor, rotation: Rotation
) -> None:
    """Norms and rotates into `query_out` and `key_out`, which may be `query` and `key`."""
    r = rotation
    _forward(query, query_out, r.query_cos, r.query_sin, r.query_weight, r)
    _forward(key, key_out, r.key_cos, r.key_sin, r.key_weight, r)


def composite(query: Tensor, key: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """What `forward` writes, in steps that autograd and transforms of torch.func look into."""
    r = rotation
    return (
        _composite(query, r.query_cos, r.query_sin, r.query_weight, r),
        _composite(key, r.key_cos, r.key_sin, r.key_weight, r),
    )


def composite_gradients(
    query: Tensor,
    key: Tensor,
    query_out_grad: Tensor,
    key_out_grad: Tensor,
    rotation: Rotation,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, where they are needed.

    Args:
        query: as it was.
        key: as it was.
        query_out_grad: the upstream gradient of the rotated queries.
        key_out_grad: that of the rotated keys.
        rotation: with the weights of the norms.
        needs: whether query, key, the weight of the queries' norm and that of the keys' need one.
    """
    r = rotation
    with torch.enable_grad():
        # Views, so that what was given twice, or made of another, has a gradient of its own.
        query, key = query.view_as(query), key.view_as(key)
        query_weight, key_weight = (
            None if weight is None else weight.view_as(weight)
            for weight in (r.query_weight, r.key_weight)
        )
        seen = replace(r, query_weight=query_weight, key_weight=key_weight)
        outputs = composite(query, key, seen)
    inputs = zip((query, key, query_weight, key_weight), needs, strict=True)
    wanted = [x for x, needed in inputs if needed and x is not None]
    pairs = zip(outputs, (query_out_grad, key_out_grad), strict=True)
    connected = [pair for pair in pairs if pair[0].requires_grad]
    values, upstream = zip(*connected, strict=True)
    found = iter(torch.autograd.grad(values, wanted, upstream, create_graph=True))
    return [next(found) if needed else None for needed in needs]


def _composite(
    x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, rotation: Rotation
) -> Tensor:
    wide = x.to(cos.dtype)
    if weight is not None:
        wide = wide * _inverse_rms(wide, rotation.eps) * weight.to(wide.dtype)
    sin = -sin[:, None] if rotation.inverse else sin[:, None]
    return rotate_reference(wide, cos[:, None], sin, rotation.layout).to(x.dtype)


def _forward(
    x: Tensor, out: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None, rotation: Rotation
) -> None:
    if weight is not None:
        x = x.to(cos.dtype)
        x = x * _inverse_rms(x, rotation.eps) * weight.to(x.dtype)
    _turn_into(out, x, cos[:, None], -sin[:, None] if rotation.inverse else sin[:, None], rotation)


def _turn_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, rotation: Rotation) -> None:
    """The rotation of `x`, rounded to the dtype of `out`, which may be `x`."""
    rotary_dim = 2 * cos.shape[-1]
    first, second = (part.to(cos.dtype) for part in _pairs(x, rotary_dim, rotation.layout))
    turned = (first * cos).sub_(second * sin), (second * cos).add_(first * sin)
    for part, values in zip(_pairs(out, rotary_dim, rotation.layout), turned, strict=True):
        part.copy_(values)
    if out is not x and rotary_dim < x.shape[-1]:
        out[..., rotary_dim:] = x[..., rotary_dim:]


def _pairs(x: Tensor, rotary_dim: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """Views of the first and the second elements of all pairs."""
    if layout == "half":
        return x[..., : rotary_dim // 2], x[..., rotary_dim // 2 : rotary_dim]
    return x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]


def backward(
    query: Tensor,
    key: Tensor,
    query_out_grad: Tensor,
    key_out_grad: Tensor,
    query_grad: Tensor,
    key_grad: Tensor,
    rotation: Rotation,
) -> tuple[Tensor | None, Tensor | None]:
    """Writes the gradients of query and key; returns those of the norms' weights."""
    r = rotation
    return (
        _backward(query, query_out_grad, query_grad, r.query_cos, r.query_sin, r.query_weight, r),
        _backward(key, key_out_grad, key_grad, r.key_cos, r.key_sin, r.key_weight, r),
    )


def _backward(
    x: Tensor,
    out_grad: Tensor,
    x_grad: Tensor,
    cos: Tensor,
    sin: Tensor,
    weight: Tensor | None,
    rotation: Rotation,
) -> Tensor | None:
    sin = sin[:, None] if rotation.inverse else -sin[:, None]
    if weight is None:
        _turn_into(x_grad, out_grad, cos[:, None], sin, rotation)
        return None
    z_grad = torch.empty_like(out_grad, dtype=cos.dtype)
    _turn_into(z_grad, out_grad, cos[:, None], sin, rotation)
    x = x.to(z_grad.dtype)
    inverse_rms = _inverse_rms(x, rotation.eps)
    normed = x * inverse_rms
    g = z_grad * weight.to(z_grad.dtype)
    x_grad.copy_(inverse_rms * (g - normed * (g * normed).mean(-1, keepdim=True)))
    return (z_grad * normed).sum((0, 1, 2)).to(weight.dtype)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return (x.square().mean(-1, keepdim=True) + eps).rsqrt()
