"""The workloads of what lies between a denoiser's products: norms, gates, activations, rotations.

    adaptive-norm          y = norm(x) · (1 + scale) + shift
    gated-adaptive-norm    r = x + gate · branch,  y = norm(r) · (1 + scale) + shift
    gated-activation       silu(g) · u of a projection [g, u]
    qk-norm-rotary         queries and keys, normed by head and turned to their places

Tensors lie as in the model: shift, scale and gate are parts of one (batch, 6 · dim), queries and
keys of one (batch, tokens, 3, heads, head_dim). The oracle is the definition in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.attention import distance, worst
from benchmarks.case import Call, Check
from ropewalk.blocks.rotary import AxialRotary, grid_coordinates

TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}
KINDS = ("adaptive-norm", "gated-adaptive-norm", "gated-activation", "qk-norm-rotary")
EPS = 1e-6


@dataclass(frozen=True)
class OpShape:
    """Sizes of a problem.

    Attributes:
        kind: one of `KINDS`.
        dim: of the stream; of an activation what is left of the projection.
        heads: of queries and keys.
        backward: whether all gradients are computed too.
    """

    kind: str
    batch: int
    tokens: int
    dim: int
    heads: int
    dtype: torch.dtype
    device: str
    backward: bool = False

    @property
    def numbers(self) -> int:
        """Of one tensor of the stream."""
        return self.batch * self.tokens * self.dim

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        return {**self.__dict__, "dtype": str(self.dtype).removeprefix("torch.")}


class Step(NamedTuple):
    """What a peer computes: results of tensors, and what they are to be."""

    function: Callable[..., tuple[Tensor, ...]]
    tensors: tuple[Tensor, ...]
    expected: Callable[[], list[Tensor]]


class OpWorkload:
    """Inputs of one shape, and what each peer makes of them.

    Attributes:
        shape: the sizes.
        tensors: what the op takes, each with a gradient if the problem has one.
        cos, sin: of a rotation, float32 (tokens, head_dim / 2); empty elsewhere.
    """

    def __init__(self, shape: OpShape) -> None:
        self.shape = s = shape
        self._generator = torch.Generator(device=s.device).manual_seed(0)
        self.tensors = tuple(x.detach().requires_grad_(s.backward) for x in self._draw())
        self.cos = self.sin = torch.empty(0, 0, device=s.device)
        if s.kind == "qk-norm-rotary":
            side = next(n for n in range(int(s.tokens**0.5), 0, -1) if s.tokens % n == 0)
            places = grid_coordinates(side, s.tokens // side, device=s.device)
            self.cos, self.sin = AxialRotary(s.dim // s.heads, 2).to(s.device)(places)
        outputs = self.oracle(tuple(x.detach()[:1] if x.ndim > 1 else x for x in self.tensors))
        self.upstream = tuple(self._normal(s.batch, *y.shape[1:]) for y in outputs)
        self._steps: dict[str, Step] = {}

    def build(self, peer: str) -> Call:
        """The call that is timed: forward without autograd, or forward and backward."""
        # The peers' modules read this one's names.
        from benchmarks.peers.denoiser_ops import build

        self._steps[peer] = step = build(peer, self)
        return lambda: self._outcome(step)

    def check(self, peer: str) -> Check:
        """All results and all gradients."""
        step = self._steps[peer]
        pairs = zip(self._outcome(step), step.expected(), strict=True)
        errors = [distance(found.detach(), exact) for found, exact in pairs]
        return Check(worst(errors), TOLERANCES[self.shape.dtype])

    def expected(self) -> list[Tensor]:
        """The definition, made once for all peers."""
        return self._expected

    def oracle(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The definition in float64."""
        wide, kind = tuple(x.double() for x in given), self.shape.kind
        if kind == "gated-activation":
            gate, up = wide[0].chunk(2, -1)
            return (gate / (1 + torch.exp(-gate)) * up,)
        if kind == "qk-norm-rotary":
            return tuple(self._turned(x, w) for x, w in zip(wide[:2], wide[2:], strict=True))
        if kind == "adaptive-norm":
            return (_modulated(*wide),)
        x, branch, gate, *modulation = wide
        residual = x + gate[:, None] * branch
        return residual, _modulated(residual, *modulation)

    @cached_property
    def _expected(self) -> list[Tensor]:
        given = tuple(x.detach().double().requires_grad_(x.requires_grad) for x in self.tensors)
        outputs = self.oracle(given)
        if not self.shape.backward:
            return list(outputs)
        upstream = tuple(x.double() for x in self.upstream)
        return [*outputs, *torch.autograd.grad(outputs, given, upstream)]

    def _outcome(self, step: Step) -> list[Tensor]:
        if not self.shape.backward:
            with torch.no_grad():
                return list(step.function(*step.tensors))
        outputs = step.function(*step.tensors)
        if not outputs[0].requires_grad:  # a copy
            return list(outputs)
        return [*outputs, *torch.autograd.grad(outputs, step.tensors, self.upstream)]

    def _draw(self) -> tuple[Tensor, ...]:
        s = self.shape
        if s.kind == "gated-activation":
            return (self._normal(s.batch, s.tokens, 2 * s.dim),)
        if s.kind == "qk-norm-rotary":
            size = s.dim // s.heads
            projected = self._normal(s.batch, s.tokens, 3, s.heads, size)
            query, key, _ = projected.permute(2, 0, 3, 1, 4).unbind()
            return query, key, self._normal(size), self._normal(size)
        shift, scale, gate, *_ = self._normal(s.batch, 6 * s.dim).chunk(6, dim=1)
        x = self._normal(s.batch, s.tokens, s.dim)
        if s.kind == "adaptive-norm":
            return x, shift, scale
        return x, self._normal(s.batch, s.tokens, s.dim), gate, shift, scale

    def _normal(self, *size: int) -> Tensor:
        drawn = torch.randn(size, generator=self._generator, device=self.shape.device)
        return drawn.to(self.shape.dtype)

    def _turned(self, x: Tensor, weight: Tensor) -> Tensor:
        normed = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight
        turned = torch.complex(*normed.chunk(2, -1))
        turned = turned * torch.complex(self.cos.double(), self.sin.double())
        return torch.cat((turned.real, turned.imag), -1)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred * (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return normed * (1 + scale[:, None]) + shift[:, None]
