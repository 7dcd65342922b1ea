"""The workload of a whole denoiser: DiT's own form, with random weights that all peers share.

Forward, or forward and the gradients of all parameters for a given gradient of the output; no loss
and no optimiser, which are the same for everybody. Nothing is zero as it would be at DiT's
initialisation, where every gate is, and a wrong block would not show.

The oracle is `peers/dit.py` in float64 on the first images of the batch; gradients are compared for
a gradient of the output that is zero but for those. A peer that computes another function, as
diffusers' model does with its own frequencies, brings its own oracle.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.attention import distance, worst
from benchmarks.case import Call, Check
from benchmarks.peers.dit import DiT
from benchmarks.saved import saved_mib

# Twenty-eight blocks of bfloat16 are 2 % off in places; a wrong block by tens of percent.
TOLERANCES = {torch.bfloat16: 6e-2, torch.float16: 2e-2, torch.float32: 1e-4}
COMPARED = 2
"""Images."""
NOTHING = 1e-9
"""Of the largest gradient, below which there is none."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a problem.

    Attributes:
        size: the name of the published size.
        side: of the latent image.
        patch: of its patches.
        backward: whether the gradients of all parameters are computed too.
    """

    size: str
    batch: int
    dim: int
    depth: int
    heads: int
    dtype: torch.dtype
    device: str
    side: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    backward: bool = False

    @property
    def tokens(self) -> int:
        """Of an image."""
        return (self.side // self.patch) ** 2

    @property
    def hidden(self) -> int:
        """Of a feed-forward."""
        return 4 * self.dim

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        return {**self.__dict__, "dtype": str(self.dtype).removeprefix("torch.")}


class Denoiser(NamedTuple):
    """What a peer computes.

    Attributes:
        forward: the output of the workload's images, steps and classes.
        parameters: what gets gradients.
        expected: of the compared images and their upstream gradient the output, and if it is
            wanted the parameters' gradients in their order, float64.
    """

    forward: Callable[[], Tensor]
    parameters: Sequence[Tensor]
    expected: Callable[[], list[Tensor]]


class ModelWorkload:
    """Images, steps and classes of one shape, and what each peer makes of them.

    Attributes:
        shape: the sizes.
        x: (batch, channels, side, side).
        steps: int64 (batch,), 0 … 999.
        classes: int64 (batch,).
        upstream: the gradient of the output.
    """

    def __init__(self, shape: ModelShape) -> None:
        self.shape = s = shape
        self.generator = torch.Generator(device=s.device).manual_seed(0)
        on = {"device": s.device, "generator": self.generator}
        self.x = torch.randn(s.batch, s.channels, s.side, s.side, **on).to(s.dtype)
        self.steps = torch.randint(1000, (s.batch,), **on)
        self.classes = torch.randint(s.classes, (s.batch,), **on)
        output = (s.batch, 2 * s.channels, s.side, s.side)
        self.upstream = torch.randn(output, **on).to(s.dtype)
        self._denoisers: dict[str, Denoiser] = {}
        torch.compiler.reset()  # once: every compiled peer keeps what was made for it

    @cached_property
    def dit(self) -> DiT:
        """The model whose weights all share."""
        s = self.shape
        sizes = (s.side, s.patch, s.channels, s.dim, s.depth, s.heads, s.classes)
        with torch.device(s.device):
            model = DiT(*sizes)
        self.draw(model)
        return model.to(s.dtype)

    def draw(self, model: nn.Module) -> None:
        """Gives a model random weights, of variance 1 / inputs, everything else being small."""
        with torch.no_grad():
            for parameter in model.parameters():
                inputs = parameter[0].numel() if parameter.ndim > 1 else 100
                noise = torch.randn(parameter.shape, generator=self.generator, device=self.x.device)
                parameter.copy_(noise / inputs**0.5)
        model.requires_grad_(self.shape.backward).eval()

    def build(self, peer: str) -> Call:
        """The call that is timed: forward without autograd, or forward and backward."""
        # The peers' modules read this one's names.
        from benchmarks.peers.denoiser import build

        self._denoisers[peer] = denoiser = build(peer, self)
        return lambda: self._outcome(denoiser, self.upstream)

    def check(self, peer: str) -> Check:
        """The output of some images, and the gradient of every parameter."""
        denoiser = self._denoisers[peer]
        output, *gradients = self._outcome(denoiser, self._upstream_of_compared)
        exact, *exact_gradients = denoiser.expected()
        errors = [distance(output.detach()[:COMPARED], exact)]
        largest = max((x.norm() for x in exact_gradients), default=torch.tensor(0.0))
        for found, gradient in zip(gradients, exact_gradients, strict=True):
            # The softmax cancels a bias of the keys, whose gradient is nothing but rounding.
            nothing = bool(gradient.norm() < NOTHING * largest)
            apart = (found.double() - gradient).norm()
            errors.append(float(apart / (largest if nothing else gradient.norm())))
        return Check(worst(errors), TOLERANCES[self.shape.dtype])

    def figures(self, peer: str) -> dict[str, float]:
        """In training, what is kept from the forward for the backward."""
        if not self.shape.backward:
            return {}
        denoiser = self._denoisers[peer]
        known = (*denoiser.parameters, self.x, self.steps, self.classes)
        return {"saved_mib": round(saved_mib(denoiser.forward, known), 3)}

    def expected(self) -> list[Tensor]:
        """What `dit` gives in float64."""
        return self._expected

    def exact(self, model: nn.Module, forward: Callable[..., Tensor]) -> list[Tensor]:
        """What a model gives in float64 of the compared images.

        Args:
            model: in the problem's dtype; a copy is widened.
            forward: output of (model, x, steps, classes).
        """
        wide = copy.deepcopy(model).double()
        given = (self.x[:COMPARED].double(), self.steps[:COMPARED], self.classes[:COMPARED])
        with torch.set_grad_enabled(self.shape.backward):
            output = forward(wide, *given)
        if not self.shape.backward:
            return [output]
        upstream = self.upstream[:COMPARED].double()
        return [output, *torch.autograd.grad(output, list(wide.parameters()), upstream)]

    @cached_property
    def _expected(self) -> list[Tensor]:
        return self.exact(self.dit, lambda model, *given: model(*given))

    @cached_property
    def _upstream_of_compared(self) -> Tensor:
        upstream = torch.zeros_like(self.upstream)
        upstream[:COMPARED] = self.upstream[:COMPARED]
        return upstream

    def _outcome(self, denoiser: Denoiser, upstream: Tensor) -> list[Tensor]:
        if not self.shape.backward:
            with torch.no_grad():
                return [denoiser.forward()]
        output = denoiser.forward()
        return [output, *torch.autograd.grad(output, list(denoiser.parameters), upstream)]
