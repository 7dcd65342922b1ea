"""Who computes what lies between a denoiser's products.

auto, triton, reference   `ropewalk.kernels` adaptive_norm, gated_mlp and rotary, by backend
torch                     the equations as models have them, in the tensors' dtype, step by step
torch-compiled            the same through torch.compile
copy                      none of it: a copy that moves as many bytes as the least work does
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.case import Unavailable
from benchmarks.denoiser_ops import EPS, KINDS, OpWorkload, Step
from benchmarks.roofline import denoiser_op_work
from ropewalk.kernels.adaptive_norm import adaptive_norm, gated_adaptive_norm
from ropewalk.kernels.gated_mlp import gated_activation
from ropewalk.kernels.rotary import rotate_query_key

if TYPE_CHECKING:
    from ropewalk.kernels.backends import Backend

Function = Callable[..., tuple[Tensor, ...]]


def build(name: str, workload: OpWorkload) -> Step:
    """What a peer computes.

    Raises:
        Unavailable: it cannot take part.
        KeyError: there is no such peer.
    """
    if name == "copy":
        return _copy(workload)
    if name.startswith("torch"):
        function = _torch(workload)
        if name == "torch-compiled":
            torch.compiler.reset()
            function = torch.compile(function, dynamic=False, fullgraph=True)
        return Step(function, workload.tensors, workload.expected)
    backends = {"auto": "auto", "triton": "triton", "reference": "reference"}
    function = _library(workload, cast("Backend", backends[name]))
    try:  # a backend that the op refuses here is absent, not wrong
        with torch.no_grad():
            function(*workload.tensors)
    except ValueError as error:
        if "backend" not in str(error):
            raise
        raise Unavailable(str(error)) from None
    return Step(function, workload.tensors, workload.expected)


def _library(workload: OpWorkload, backend: "Backend") -> Function:
    def normed(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return (adaptive_norm(x, shift, scale, eps=EPS, backend=backend),)

    def chain(*given: Tensor) -> tuple[Tensor, ...]:
        return gated_adaptive_norm(*given, eps=EPS, backend=backend)

    def activated(projected: Tensor) -> tuple[Tensor, ...]:
        return (gated_activation(projected, backend=backend),)

    def turned(query: Tensor, key: Tensor, weight: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        return rotate_query_key(
            query, key, workload.cos, workload.sin,
            query_norm_weight=weight, key_norm_weight=other, norm_eps=EPS, backend=backend,
        )  # fmt: skip

    return _named(workload, normed, chain, activated, turned)


def _torch(workload: OpWorkload) -> Function:
    def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    def normed(x: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return (modulate(functional.layer_norm(x, x.shape[-1:], eps=EPS), shift, scale),)

    def chain(
        x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor
    ) -> tuple[Tensor, ...]:
        residual = x + gate.unsqueeze(1) * branch
        return residual, *normed(residual, shift, scale)

    def activated(projected: Tensor) -> tuple[Tensor, ...]:
        gate, up = projected.chunk(2, -1)
        return (functional.silu(gate) * up,)

    # Models make one cosine for each dimension, in their dtype, once for all layers.
    cos, sin = (
        torch.cat((table, table), -1).to(workload.shape.dtype)
        for table in (workload.cos, workload.sin)
    )

    def turn(x: Tensor, weight: Tensor) -> Tensor:
        x = functional.rms_norm(x, x.shape[-1:], weight, EPS)
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def turned(query: Tensor, key: Tensor, weight: Tensor, other: Tensor) -> tuple[Tensor, ...]:
        return turn(query, weight), turn(key, other)

    return _named(workload, normed, chain, activated, turned)


def _named(workload: OpWorkload, *functions: Function) -> Function:
    """The one of the workload's kind, given in the order of `KINDS`."""
    return functions[KINDS.index(workload.shape.kind)]


def _copy(workload: OpWorkload) -> Step:
    """Half as many numbers as the least work moves: a copy reads and writes each."""
    s = workload.shape
    numbers = int(denoiser_op_work(s).bytes) // (2 * s.dtype.itemsize)
    source = torch.randn(numbers, device=s.device).to(s.dtype)
    target = torch.empty_like(source)
    return Step(lambda x: (target.copy_(x),), (source,), lambda: [source.double()])
