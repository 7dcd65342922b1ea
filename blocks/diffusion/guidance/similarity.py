"""Similarity guidance: towards data that resemble a target.

    x̂₀ += w·(σ²/α)·∇ sim(embed(x), target)

It is classifier guidance with an unnormalised log p(target | x) that needs no training on noisy
data: by default x is the prediction x̂₀(x_t), and the gradient goes back through the model to x_t.

Tokens: x is the probabilities of x̂₀, (batch, …, vocabulary), and w times the gradient with respect
to them is added to the log-probabilities; the model is not differentiated.

Source: Liu et al., arXiv 2112.05744 (semantic guidance); Bansal et al., arXiv 2302.07121 (through
the prediction); Su, kexue.fm/archives/9257.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ropewalk.blocks.diffusion.checks import Time
from ropewalk.blocks.diffusion.guidance.classifier import state_gradient, strength
from ropewalk.blocks.diffusion.guidance.guidance import (
    Guidance,
    Predict,
    gradient_of,
    require_callable,
    require_scale,
    tilted,
)
from ropewalk.blocks.diffusion.predict import Prediction
from ropewalk.blocks.diffusion.process import Discrete, Process


def cosine(features: Float[Tensor, "batch ..."], target: Tensor) -> Float[Tensor, " batch"]:
    """The cosine of the angle between features and target, which broadcasts over the batch.

    Raises:
        ValueError: the target does not broadcast to the features.
    """
    _check_target(target, features.shape)
    batch = features.shape[0]
    return torch.nn.functional.cosine_similarity(
        features.reshape(batch, -1), target.expand(features.shape).reshape(batch, -1), dim=1
    )


@dataclass(frozen=True)
class Similarity(Guidance):
    """Adds the gradient of a similarity.

    Attributes:
        embed: from data to features, differentiable; None compares the data themselves.
        target: what the features should resemble; handed to `similarity` as it is. For the cosine
            a tensor, of one sample's features or for each sample its own.
        scale: w.
        similarity: similarity(features, target) → (batch,); the cosine by default.
        on: "prediction" embeds x̂₀, "state" embeds x_t (which `embed` has to be trained for; it
            costs no gradient of the model). For tokens the state is one-hot.

    Raises:
        TypeError: a field is of the wrong kind.
        ValueError: `on` is neither of these, or the scale is not finite.
    """

    embed: Callable[[Tensor], Tensor] | None
    target: Any = field(compare=False)
    scale: float = 1.0
    similarity: Callable[[Tensor, Any], Float[Tensor, " batch"]] = cosine
    on: str = "prediction"

    def __post_init__(self) -> None:
        if self.embed is not None:
            require_callable("Similarity", embed=self.embed)
        require_callable("Similarity", similarity=self.similarity)
        require_scale("Similarity", self.scale)
        if self.on not in ("prediction", "state"):
            raise ValueError(f"Similarity.on: expected 'prediction' or 'state', got {self.on!r}")
        if self.similarity is cosine and not isinstance(self.target, Tensor):
            raise TypeError(
                "Similarity.target: expected a tensor for the cosine, got "
                f"{type(self.target).__name__}; another similarity=… takes other targets"
            )

    def check(self, predict: Predict, condition: Any, process: Process) -> None:
        """Raises where the data themselves are compared with a target of another shape.

        Features of an `embed` have a shape that is known when it has run only.

        Raises:
            ValueError: the target does not broadcast to the data.
        """
        shape = getattr(predict, "shape", None)
        if shape is None or self.embed is not None or self.similarity is not cosine:
            return
        if isinstance(process, Discrete):
            entries = process.states if self.on == "state" else process.vocabulary
            shape = (*shape, entries)
        _check_target(self.target, shape)

    def __call__(
        self,
        predict: Predict,
        x_t: Num[Tensor, "batch ..."],
        t: Time,
        condition: Any,
        process: Process,
    ) -> Prediction:
        """One call of the model; differentiated where the prediction of no tokens is embedded."""
        if self.on == "prediction" and not process.discrete:
            seen: list[Prediction] = []

            def through(x: Tensor) -> Tensor:
                seen.append(predict(x, t, condition))
                return self._compare(seen[0].data)

            push = gradient_of(through, x_t, "similarity")
            data, variance = seen[0]
            variance = None if variance is None else variance.detach()
            prediction = Prediction(data.detach(), variance)
        else:
            if self.on == "state":
                # First, so that what it refuses is refused before the model runs.
                push = state_gradient(self._compare, x_t, process, "similarity")
                prediction = predict(x_t, t, condition)
            else:
                prediction = predict(x_t, t, condition)
                push = gradient_of(self._compare, prediction.data.exp(), "similarity")
        data = tilted(prediction.data, push, self.scale * strength(process, x_t, t), process)
        return prediction._replace(data=data)

    def _compare(self, x: Tensor) -> Float[Tensor, " batch"]:
        return self.similarity(x if self.embed is None else self.embed(x), self.target)


def _check_target(target: Tensor, shape: Sequence[int]) -> None:
    pairs = zip(reversed(target.shape), reversed(shape), strict=False)
    if target.ndim > len(shape) or not all(own in (1, wanted) for own, wanted in pairs):
        raise ValueError(
            "Similarity.target: expected the shape of one sample's features, "
            f"{tuple(shape[1:])}, or of all, {tuple(shape)}, or one that broadcasts to it, got "
            f"{tuple(target.shape)}"
        )
