"""Who rotates queries and keys.

auto, triton, reference            `ropewalk.kernels.rotary.rotate_query_key` by backend
auto-in-place, triton-in-place     the same, written over its inputs
torch                              x ⊙ cos + rotate(x) ⊙ sin in x's dtype, norms by torch
torch-compiled                     the same through torch.compile
flash-attn                         its rotary kernel, half and interleaved, without norms
"""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from benchmarks.case import Unavailable
from ropewalk.kernels.rotary import rotate_query_key

if TYPE_CHECKING:
    from benchmarks.rotation import RotationWorkload

Rotate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def build(name: str, workload: "RotationWorkload") -> Rotate:
    """The function of (query, key) that a peer times.

    Raises:
        Unavailable: it cannot take part.
    """
    if name == "flash-attn":
        return _flash_attn(workload)
    if name.startswith("torch"):
        rotate = _torch(workload)
        if name == "torch":
            return rotate
        torch.compiler.reset()
        return torch.compile(rotate, dynamic=False, fullgraph=True)
    return _library(name, workload)


def _library(name: str, workload: "RotationWorkload") -> Rotate:
    backend, inplace = name.removesuffix("-in-place"), name.endswith("-in-place")
    query_weight, key_weight = workload.weights or (None, None)

    def rotate(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return rotate_query_key(
            query,
            key,
            workload.cos,
            workload.sin,
            layout=workload.shape.layout,
            query_norm_weight=query_weight,
            key_norm_weight=key_weight,
            inplace=inplace,
            backend=backend,  # type: ignore[arg-type]
        )

    try:  # a backend that the op refuses here is absent, not wrong
        with torch.no_grad():
            rotate(workload.query.detach().clone(), workload.key.detach().clone())
    except ValueError as error:
        if "backend" not in str(error):
            raise
        raise Unavailable(str(error)) from None
    return rotate


def _torch(workload: "RotationWorkload") -> Rotate:
    s, weights = workload.shape, workload.weights or (None, None)
    half = s.layout == "half"
    # Models make one cosine for each dimension, in their dtype, once for all layers.
    cos, sin = (
        (table.repeat(1, 2) if half else table.repeat_interleave(2, -1)).to(s.dtype)
        for table in (workload.cos, workload.sin)
    )

    def turned(x: Tensor, weight: Tensor | None) -> Tensor:
        if weight is not None:
            x = rms_norm(x, (s.head_dim,), weight, 1e-6)
        if half:
            first, second = x.chunk(2, -1)
            across = torch.cat((-second, first), -1)
        else:
            across = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
        return x * cos + across * sin

    def rotate(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return turned(query, weights[0]), turned(key, weights[1])

    return rotate


def _flash_attn(workload: "RotationWorkload") -> Rotate:
    if importlib.util.find_spec("flash_attn") is None:
        raise Unavailable("flash-attn is not installed")
    if workload.shape.device != "cuda":
        raise Unavailable("flash-attn needs a GPU")
    if workload.shape.norm:
        raise Unavailable("flash-attn's rotary kernel has no norms")
    try:
        from flash_attn.layers.rotary import (  # type: ignore[import-not-found]
            apply_rotary_emb,
        )
    except (ImportError, OSError) as error:
        raise Unavailable(f"flash-attn cannot be imported: {error}") from None
    cos, sin = (table.to(workload.shape.dtype) for table in (workload.cos, workload.sin))
    interleaved = workload.shape.layout == "interleaved"

    def turned(x: Tensor) -> Tensor:
        return apply_rotary_emb(x.transpose(1, 2), cos, sin, interleaved).transpose(1, 2)

    return lambda query, key: (turned(query), turned(key))
