"""The workload of rotating queries and keys: inputs, and the rotation in float64 as oracle.

The oracle multiplies complex numbers, after an RMSNorm if wanted; autograd differentiates it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention import distance
from benchmarks.case import Call, Check
from benchmarks.peers import rotation as peers
from ropewalk.blocks.rotary import RotaryEmbedding
from ropewalk.kernels.shapes import Layout

# Multiplying in bfloat16, as models do, is 0.4 % off; a wrong pairing tens of percent.
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}
EPS = 1e-6


@dataclass(frozen=True)
class RotationShape:
    """Sizes of a problem.

    Attributes:
        norm: whether queries and keys are normed first.
        backward: whether the gradients of queries, keys and norms' weights are computed too.
    """

    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int
    dtype: torch.dtype
    device: str
    layout: Layout
    norm: bool = False
    backward: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        return {**self.__dict__, "dtype": str(self.dtype).removeprefix("torch.")}


class RotationWorkload:
    """Inputs of one shape.

    Attributes:
        query, key: random.
        weights: of the norms, or none.
        cos, sin: float32 (length, head_dim / 2).
    """

    def __init__(self, shape: RotationShape) -> None:
        self.shape = s = shape
        self._generator = torch.Generator(device=s.device).manual_seed(0)
        self.query = self._random(s.batch, s.heads, s.length, s.head_dim)
        self.key = self._random(s.batch, s.kv_heads, s.length, s.head_dim)
        self.weights: tuple[Tensor, ...] = ()
        if s.norm:
            self.weights = (self._random(s.head_dim), self._random(s.head_dim))
        positions = torch.arange(s.length, device=s.device)
        self.cos, self.sin = RotaryEmbedding(s.head_dim, layout=s.layout).to(s.device)(positions)
        self._rotates: dict[str, peers.Rotate] = {}

    def _random(self, *size: int) -> Tensor:
        drawn = torch.randn(size, generator=self._generator, device=self.shape.device)
        return drawn.to(self.shape.dtype).requires_grad_(self.shape.backward)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.query, self.key, *self.weights)

    @cached_property
    def grads(self) -> tuple[Tensor, Tensor]:
        """Of the rotated queries and keys."""
        query, key = self._random(*self.query.shape), self._random(*self.key.shape)
        return query.detach(), key.detach()

    def build(self, peer: str) -> Call:
        """The call that is timed: forward without autograd, or forward and backward."""
        self._rotates[peer] = rotate = peers.build(peer, self)
        if self.shape.backward:
            grads = self.grads
            return lambda: torch.autograd.grad(rotate(self.query, self.key), self.inputs, grads)
        return lambda: _without_autograd(rotate, self.query, self.key)

    def check(self, peer: str) -> Check:
        """All of the result; a peer that writes over its inputs gets copies."""
        rotate, tolerance = self._rotates[peer], TOLERANCES[self.shape.dtype]
        if not self.shape.backward:
            results = _without_autograd(rotate, self.query.clone(), self.key.clone())
            expected = self._oracle(self.inputs)
            return Check(max(map(distance, results, expected)), tolerance)
        outputs = rotate(self.query, self.key)
        grads = torch.autograd.grad(outputs, self.inputs, self.grads)
        wide = tuple(tensor.detach().double().requires_grad_() for tensor in self.inputs)
        expected = self._oracle(wide)
        wide_grads = tuple(grad.double() for grad in self.grads)
        expected_grads = torch.autograd.grad(expected, wide, wide_grads)
        results = (*(output.detach() for output in outputs), *grads)
        errors = [*map(distance, results, (*expected, *expected_grads))]
        return Check(float(torch.tensor(errors).max()), tolerance)

    def _oracle(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weights = inputs[2:] or (None, None)
        return tuple(
            self._turn(_norm(x.double(), weight))
            for x, weight in zip(inputs[:2], weights, strict=True)
        )

    def _turn(self, x: Tensor) -> Tensor:
        angle = torch.complex(self.cos.double(), self.sin.double())
        if self.shape.layout == "interleaved":
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * angle).flatten(-2)
        turned = torch.complex(*x.chunk(2, -1)) * angle
        return torch.cat((turned.real, turned.imag), -1)


def _norm(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return x
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


@torch.no_grad()
def _without_autograd(rotate: "peers.Rotate", query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    return rotate(query, key)
