"""What the processes on tokens share: log-probabilities, categoricals in float64, their clock.

A token is corrupted where its u ~ U(0, 1) lies below a rate m(t), which rises from m(0) = 0. So the
noise of a token that is seen corrupted at t is uniform below m(t), and of one that is not above.

Categoricals are drawn in float64: the Gumbel noise of float32 cannot exceed 17, which makes
unlikely tokens rarer than they are and lowers the temperature unasked (Zheng et al., arXiv
2409.02908).
"""

from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ropewalk.blocks.checks import require_number
from ropewalk.blocks.diffusion.checks import Time, require_tokens, time_rows
from ropewalk.blocks.diffusion.process.process import Process
from ropewalk.blocks.diffusion.random import uniform_like

Noise = TypeVar("Noise")
Tokens = Int[Tensor, "batch ..."]


class Discrete(Process[Noise]):
    """Base class of processes on tokens.

    Attributes:
        vocabulary: how many tokens there are, and how many logits the model gives for each place.
    """

    discrete: ClassVar[bool] = True
    vocabulary: int

    @property
    def states(self) -> int:
        """How many different entries x_t may have."""
        return self.vocabulary

    def rate(self, x: Tokens, t: Time) -> Float[Tensor, "..."]:
        """m(t), the probability that a token is corrupted, 0-d or shaped to go with x; float64."""
        return self.schedule.severity(time_rows(t, x).to(torch.float64))

    def model_input(self, x_t: Tokens, t: Time) -> Tokens:
        """x_t itself."""
        require_tokens("x_t", x_t, self.states)
        return x_t

    def draw(
        self,
        prediction: Float[Tensor, "batch ... vocabulary"],
        x_t: Tokens,
        t: Time,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tokens:
        """Tokens drawn from log-probabilities, each by itself, in float64.

        Args:
            prediction: log-probabilities, −∞ where impossible; they need not be normalised.
            x_t: the state, which gives the dtype.
            t: the time.
            temperature: what they are divided by; 0 takes the most likely token.
            generator: for the draw.

        Raises:
            TypeError: the temperature is not a number, or the prediction not floating-point.
            ValueError: the temperature is negative, or the prediction has a wrong shape.
        """
        require_number("draw", "a number ≥ 0", temperature=temperature)
        if not temperature >= 0:
            raise ValueError(f"temperature: expected a number ≥ 0, got {temperature!r}")
        self._check_output(prediction, x_t)
        if temperature == 0:
            return prediction.argmax(-1).to(x_t.dtype)
        logits = prediction.to(torch.float64) / temperature
        # The largest of log p − log E with E exponential is a draw from p (Gumbel's trick).
        uniform = uniform_like(logits, generator)
        return (logits - (-torch.log1p(-uniform)).log()).argmax(-1).to(x_t.dtype)

    def _below_or_above(
        self,
        corrupted: Bool[Tensor, "batch ..."],
        rate: Float[Tensor, "..."],
        generator: torch.Generator | None,
    ) -> Float[Tensor, "batch ..."]:
        """The posterior of u: uniform below the rate where corrupted, above it elsewhere."""
        uniform = uniform_like(corrupted, generator)
        return torch.where(corrupted, uniform * rate, rate + uniform * (1 - rate))

    def _check_output(self, output: Tensor, x_t: Tokens) -> None:
        require_tokens("x_t", x_t, self.states)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            got = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"output: expected floating-point logits, got {got}")
        if output.shape != (*x_t.shape, self.vocabulary):
            raise ValueError(
                f"output: expected logits of shape {(*x_t.shape, self.vocabulary)}, the state's "
                f"and one for each token, got {tuple(output.shape)}"
            )


def cross_entropy(
    output: Float[Tensor, "batch ... vocabulary"], x0: Tokens
) -> Float[Tensor, "batch ..."]:
    """−log p(x₀) of each token, in float32 at least."""
    logits = output.to(torch.promote_types(output.dtype, torch.float32))
    return logits.logsumexp(-1) - logits.gather(-1, x0.long().unsqueeze(-1)).squeeze(-1)
