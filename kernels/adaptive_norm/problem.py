"""What an implementation gets and what it gives.

An implementation is a module with two functions:

    forward(problem) -> Outputs
    backward(problem, kept, upstream, needs) -> Gradients

where `problem.x` of the backward is the residual that the norm saw, and not what it was made of;
without a norm any tensor of its shape and dtype.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Norm = Literal["layer", "rms"]
NORMS: tuple[str, ...] = get_args(Norm)


class Problem(NamedTuple):
    """A residual stream, what is added to it, and how it is normed.

    No dataclass, which compilers of torch before 2.12 cannot trace the making of.

    Attributes:
        x: (batch, tokens, dim), of any strides; in the backward the residual.
        branch: like x, of any strides; none where nothing is added.
        gate: (samples, dim), of any strides; none for 1.
        shift: (samples, dim), of any strides; none for 0.
        scale: (samples, dim), of any strides; none for 0.
        weight: (dim,), of the norm itself; none for 1.
        bias: (dim,), of the norm itself; none for 0.
        cu_seqlens: (samples + 1,), where packed samples begin in a batch of 1; none where each
            row of the batch is a sample.
        norm: one of `NORMS`, or none where there is only the gated sum.
        eps: added to the variance or to the mean square.
    """

    x: Tensor
    branch: Tensor | None
    gate: Tensor | None
    shift: Tensor | None
    scale: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    cu_seqlens: Tensor | None
    norm: str | None
    eps: float

    @property
    def samples(self) -> int:
        """What has a gate, a shift and a scale of its own."""
        return self.x.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def tokens(self) -> int:
        """Of a row of the batch."""
        return self.x.shape[1]

    @property
    def dim(self) -> int:
        return self.x.shape[2]

    def fresh(self) -> Tensor:
        """Memory for a result: contiguous, of the shape and dtype of x."""
        return torch.empty(self.x.shape, dtype=self.x.dtype, device=self.x.device)


class Statistics(NamedTuple):
    """Of every token, (batch, tokens) in `statistics_dtype`."""

    mean: Tensor | None
    """None for the root mean square."""
    rstd: Tensor
    """1 / √(variance + eps), or 1 / √(mean square + eps)."""


class Outputs(NamedTuple):
    """What a problem has: a residual where there is a branch, the others where there is a norm."""

    residual: Tensor | None
    y: Tensor | None
    statistics: Statistics | None


class Upstream(NamedTuple):
    """Gradients that come, at least one of them; of any strides."""

    residual: Tensor | None
    y: Tensor | None


class Made(NamedTuple):
    """Whether memory of the stream's size is needed for a gradient."""

    x: bool
    branch: bool


class SumsNeeded(NamedTuple):
    """Which sums over a sample's tokens go into a gradient that is wanted."""

    along: bool
    straight: bool
    gate: bool


class Needs(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    branch: bool
    gate: bool
    shift: bool
    scale: bool
    weight: bool
    bias: bool

    def made(self, gated: bool, normed: bool) -> Made:
        """Without a norm that of x is the upstream one; without a gate the branch's is that of x.

        Args:
            gated: whether there is a gate.
            normed: whether a gradient of y came.
        """
        return Made(normed and (self.x or (self.branch and not gated)), self.branch and gated)

    def sums(self, biased: bool, normed: bool) -> SumsNeeded:
        """What has to be summed over tokens.

        Args:
            biased: whether the norm has a bias, which the scale multiplies.
            normed: whether a gradient of y came.
        """
        return SumsNeeded(
            normed and (self.scale or self.weight),
            normed and (self.shift or self.bias or (self.scale and biased)),
            self.gate,
        )


class Sums(NamedTuple):
    """Over each sample's tokens, (samples, dim) in `statistics_dtype`; none where not needed."""

    along: Tensor | None
    """Of the gradient of y times the normed values."""
    straight: Tensor | None
    """Of the gradient of y."""
    gate: Tensor | None
    """Of the gradient of the residual times the branch."""


class Gradients(NamedTuple):
    """Those that were wanted, none elsewhere; of the shapes and dtypes of what they belong to.

    That of x is none, too, where it is the upstream one of the residual; that of the branch, where
    it is the gradient of x, because there is no gate.
    """

    x: Tensor | None
    branch: Tensor | None
    gate: Tensor | None
    shift: Tensor | None
    scale: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def modulation_gradients(p: Problem, sums: Sums, needs: Needs) -> list[Tensor | None]:
    """Gradients of gate, shift, scale, weight and bias, from sums over each sample's tokens."""
    along, straight, gate = sums
    scale = weight = bias = None
    if needs.scale and along is not None:
        scale = along if p.weight is None else along * p.weight
        if p.bias is not None and straight is not None:
            scale = torch.addcmul(scale, straight, p.bias.to(straight.dtype))
    if needs.weight and along is not None:
        weight = (along if p.scale is None else torch.addcmul(along, along, p.scale)).sum(0)
    if needs.bias and straight is not None:
        bias = (straight if p.scale is None else torch.addcmul(straight, straight, p.scale)).sum(0)
    found = (gate, straight if needs.shift else None, scale, weight, bias)
    of = (p.gate, p.shift, p.scale, p.weight, p.bias)
    return [
        None if grad is None or given is None else grad.to(given.dtype).contiguous()
        for grad, given in zip(found, of, strict=True)
    ]
