"""The mask process: tokens are hidden one after another, and what is seen is true.

A token with u ~ U(0, 1) is masked at t iff u < m(t), m the schedule's severity. Given x₀, a token
that is masked at t is so at s < t with probability m(s)/m(t). The mask is the index `vocabulary`,
one past the last token. Predictions never hold it, and keep what is seen ("carry-over").

The loss is the cross-entropy on what is masked. Weighted with m'/m and averaged over t ~ U(0, 1) it
bounds the negative log-likelihood (nats per token).

Source: Sahoo et al. (MDLM), arXiv 2406.07524, equations 7 to 11; Shi et al., arXiv 2406.04329.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.diffusion.checks import Time, require_same_shape, require_tokens, time_rows
from ropewalk.blocks.diffusion.process.discrete import Discrete, Tokens, cross_entropy
from ropewalk.blocks.diffusion.process.process import check_rho, require_schedule, sample_mean
from ropewalk.blocks.diffusion.random import uniform_like
from ropewalk.blocks.diffusion.schedule import Schedule

Uniform = Float[Tensor, "batch ..."]


@dataclass(frozen=True)
class Mask(Discrete[Uniform]):
    """Tokens become the mask; the noise is one uniform number per token, float64.

    Attributes:
        vocabulary: how many tokens there are; the mask is the index after them, and the model gives
            logits for the tokens only.
        schedule: its severity is the share of masked tokens; `RectifiedFlow` masks t of them.
        elbo: whether the loss is weighted with m'/m.

    Raises:
        TypeError: a field is of the wrong kind.
        ValueError: the vocabulary is empty.

    Example:
        >>> process = Mask(27, RectifiedFlow())
        >>> x0 = torch.randint(27, (2, 12))
        >>> x_t = process.corrupt(x0, process.fresh(x0), 0.5)
        >>> hidden = x_t == process.mask_token
    """

    kind: ClassVar[str] = "mask"
    vocabulary: int
    schedule: Schedule
    elbo: bool = False

    def __post_init__(self) -> None:
        require_integer("Mask", 1, vocabulary=self.vocabulary)
        require_schedule(self.schedule)
        if not isinstance(self.elbo, bool):
            raise TypeError(f"Mask.elbo: expected True or False, got {self.elbo!r}")

    @property
    def mask_token(self) -> int:
        """The index that stands for a hidden token."""
        return self.vocabulary

    @property
    def states(self) -> int:
        """The tokens and the mask."""
        return self.vocabulary + 1

    def fresh(self, x0: Tokens, *, generator: torch.Generator | None = None) -> Uniform:
        """A uniform number for each token."""
        require_tokens("x0", x0, self.vocabulary)
        return uniform_like(x0, generator)

    def corrupt(self, x0: Tokens, noise: Uniform, t: Time) -> Tokens:
        """The mask where u < m(t), x0 elsewhere.

        Raises:
            TypeError: x0 does not hold integers.
            ValueError: a token is out of the vocabulary, shapes differ, or t is no time for x0.
        """
        require_tokens("x0", x0, self.vocabulary)
        require_same_shape("noise", noise, "x0", x0)
        return x0.masked_fill(noise < self.rate(x0, t), self.mask_token)

    def noise(
        self, x_t: Tokens, x0: Tokens, t: Time, *, generator: torch.Generator | None = None
    ) -> Uniform:
        """A draw of u given what is masked: below m(t) there, above it elsewhere."""
        require_tokens("x_t", x_t, self.states)
        require_tokens("x0", x0, self.vocabulary)
        require_same_shape("x0", x0, "x_t", x_t)
        return self._below_or_above(x_t == self.mask_token, self.rate(x_t, t), generator)

    def renew(
        self, noise: Uniform, rho: Time, *, generator: torch.Generator | None = None
    ) -> Uniform:
        """Each u drawn anew with probability ρ²: seen tokens may be masked again."""
        part = check_rho(rho, noise)
        if isinstance(part, float) and part == 0:
            return noise
        anew = uniform_like(noise, generator) < part**2
        return torch.where(anew, uniform_like(noise, generator), noise)

    def prior(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tokens:
        """All masked; int64 unless another integer dtype is asked for. Nothing is drawn."""
        x = torch.full(tuple(shape), self.mask_token, device=device, dtype=dtype or torch.int64)
        require_tokens("prior", x, self.states)
        return x

    def predict(
        self, output: Float[Tensor, "batch ... vocabulary"], x_t: Tokens, t: Time
    ) -> Float[Tensor, "batch ... vocabulary"]:
        """Log-probabilities in float32 at least: what is seen stays, with 0 for it and −∞ around.

        Raises:
            TypeError: logits that are not floating-point, or x_t not integers.
            ValueError: logits of another shape than (batch, …, vocabulary), or t is no time here.
        """
        self._check_output(output, x_t)
        time_rows(t, x_t)
        log_probs = output.to(torch.promote_types(output.dtype, torch.float32)).log_softmax(-1)
        seen = x_t.long().clamp(max=self.vocabulary - 1).unsqueeze(-1)
        carried = torch.full_like(log_probs, -torch.inf).scatter(-1, seen, 0.0)
        return torch.where((x_t == self.mask_token).unsqueeze(-1), log_probs, carried)

    def loss(
        self,
        output: Float[Tensor, "batch ... vocabulary"],
        x0: Tokens,
        x_t: Tokens,
        noise: Uniform,
        t: Time,
    ) -> Float[Tensor, " batch"]:
        """The cross-entropy of the masked tokens, 0 for the others, mean over all of them.

        With `elbo` it is weighted with m'/m: its mean over t ~ U(0, 1) bounds the nats per token.

        Raises:
            TypeError, ValueError: as in `predict`; or x0 is out of the vocabulary or of another
                shape than x_t.
        """
        self._check_output(output, x_t)
        require_tokens("x0", x0, self.vocabulary)
        require_same_shape("x0", x0, "x_t", x_t)
        errors = cross_entropy(output, x0).masked_fill(x_t != self.mask_token, 0.0)
        rate = self.rate(x_t, t)
        if not self.elbo:
            return sample_mean(errors)
        slope = self.schedule.severity_derivative(time_rows(t, x_t).to(torch.float64))
        # Nothing is masked where the rate is 0, whatever the weight would be.
        nothing = rate == 0
        weight = torch.where(nothing, 0.0, slope / rate.masked_fill(nothing, 1.0))
        return sample_mean(errors * weight.to(errors.dtype))
