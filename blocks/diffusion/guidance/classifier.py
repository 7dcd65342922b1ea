"""Classifier guidance: towards what a classifier of noisy data takes for the condition.

    x̂₀ += w·(σ²/α)·∇ log p(y | x_t)

With w = 1 and the true p(y | x_t) this turns E[x₀ | x_t] into E[x₀ | x_t, y] exactly, for Gaussian
noise; for other noise it is the same push, and a heuristic. Where α is 0 the state tells nothing of
the data and there is no push.

Tokens: the gradient with respect to the one-hot state says, to first order, by how much each token
would raise log p(y | x_t); w times it is added to the log-probabilities (arXiv 2406.01572, §3.3).

Source: Dhariwal and Nichol, arXiv 2105.05233; Su, kexue.fm/archives/9257.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ropewalk.blocks.diffusion.checks import Time, as_time, per_sample, wide
from ropewalk.blocks.diffusion.guidance.guidance import (
    Guidance,
    Predict,
    gradient_of,
    require_callable,
    require_scale,
    tilted,
)
from ropewalk.blocks.diffusion.parametrisation import reciprocal
from ropewalk.blocks.diffusion.predict import Prediction
from ropewalk.blocks.diffusion.process import Continuous, Discrete, Process

LogProb = Callable[[Tensor, Tensor, Any], Float[Tensor, " batch"]]
"""log_prob(x_t, t (batch,), condition) -> log p(condition | x_t) of each sample."""


@dataclass(frozen=True)
class Classifier(Guidance):
    """Adds the classifier's gradient.

    Attributes:
        log_prob: log_prob(x_t, t, condition) → (batch,), differentiable in x_t. For tokens x_t is
            one-hot, float32 (batch, …, states), the mask being the last state of `Mask`.
        scale: w; 1 is Bayes' rule.

    Raises:
        TypeError: log_prob is not callable, or the scale not a number.
        ValueError: the scale is not finite.
    """

    log_prob: LogProb
    scale: float = 1.0

    def __post_init__(self) -> None:
        require_callable("Classifier", log_prob=self.log_prob)
        require_scale("Classifier", self.scale)

    def __call__(
        self,
        predict: Predict,
        x_t: Num[Tensor, "batch ..."],
        t: Time,
        condition: Any,
        process: Process,
    ) -> Prediction:
        """One call of the classifier, forth and back, and one of the model."""
        times = sample_times(t, x_t)
        push = state_gradient(
            lambda x: self.log_prob(x, times, condition), x_t, process, "log_prob"
        )
        # The model comes last: a classifier without a gradient is refused before it runs.
        prediction = predict(x_t, t, condition)
        data = tilted(prediction.data, push, self.scale * strength(process, x_t, t), process)
        return prediction._replace(data=data)


def sample_times(t: Time, x_t: Tensor) -> Float[Tensor, " batch"]:
    """The time of each sample, in float32 at least."""
    times = per_sample(as_time(t), x_t, "t").flatten()
    dtype = wide(x_t) if x_t.is_floating_point() else torch.float32
    return times.to(x_t.device, dtype).expand(x_t.shape[0])


def state_gradient(
    function: Callable[[Tensor], Float[Tensor, " batch"]],
    x_t: Num[Tensor, "batch ..."],
    process: Process,
    name: str,
) -> Float[Tensor, "batch ..."]:
    """The gradient with respect to the state; for tokens to the one-hot state, of the tokens."""
    if not isinstance(process, Discrete):
        return gradient_of(function, x_t, name)
    hot = torch.nn.functional.one_hot(x_t.long(), process.states).to(torch.float32)
    return gradient_of(function, hot, name)[..., : process.vocabulary]


def strength(process: Process, x_t: Tensor, t: Time) -> Tensor | float:
    """σ²/α, what turns a gradient of log p into a change of x̂₀; 0 where α is. 1 for tokens."""
    if not isinstance(process, Continuous):
        return 1.0
    alpha, sigma = process.coefficients(x_t, t)
    return sigma.square() * reciprocal(alpha)
