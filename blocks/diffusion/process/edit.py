"""The edit process: tokens are replaced by others, and every place looks like data at all times.

A token with u ~ U(0, 1) is replaced at t iff u < m(t), by x₀ + o modulo the vocabulary V, with o
uniform over 1 … V − 1: any token but itself. The rate is

    m(t) = severity(t)·(V − 1)/V

so that at t = 1 every token is equally likely, whatever it was, and the prior is exact. Nothing
tells which tokens are wrong; the model has to find out, and may change any of them at every step.

Source: Su, kexue.fm/archives/9262 (diffusion by editing text); Austin et al., arXiv 2107.03006,
whose uniform transition this is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.diffusion.checks import Time, require_same_shape, require_tokens, time_rows
from ropewalk.blocks.diffusion.process.discrete import Discrete, Tokens, cross_entropy
from ropewalk.blocks.diffusion.process.process import check_rho, require_schedule, sample_mean
from ropewalk.blocks.diffusion.random import integers, uniform_like
from ropewalk.blocks.diffusion.schedule import Schedule


class EditNoise(NamedTuple):
    """When each token is replaced, and by what.

    Attributes:
        uniform: u, float64; a token is replaced while u < m(t).
        offset: what is added to it, 1 … V − 1, int64.
    """

    uniform: Float[Tensor, "batch ..."]
    offset: Int[Tensor, "batch ..."]


@dataclass(frozen=True)
class Edit(Discrete[EditNoise]):
    """Tokens become other tokens.

    Attributes:
        vocabulary: how many tokens there are, at least 2.
        schedule: its severity, times (V − 1)/V, is the share of tokens that are replaced.

    Raises:
        TypeError: a field is of the wrong kind.
        ValueError: the vocabulary has fewer than two tokens.
    """

    kind: ClassVar[str] = "edit"
    vocabulary: int
    schedule: Schedule

    def __post_init__(self) -> None:
        require_integer("Edit", 2, vocabulary=self.vocabulary)
        require_schedule(self.schedule)

    def rate(self, x: Tokens, t: Time) -> Float[Tensor, "..."]:
        """m(t), the probability that a token is replaced."""
        return super().rate(x, t) * ((self.vocabulary - 1) / self.vocabulary)

    def fresh(self, x0: Tokens, *, generator: torch.Generator | None = None) -> EditNoise:
        """For each token a uniform number, and what would be added to it."""
        require_tokens("x0", x0, self.vocabulary)
        return self._draw(x0, generator)

    def corrupt(self, x0: Tokens, noise: EditNoise, t: Time) -> Tokens:
        """x0 + o modulo the vocabulary where u < m(t), x0 elsewhere.

        Raises:
            TypeError: x0 does not hold integers.
            ValueError: a token is out of the vocabulary, shapes differ, or t is no time for x0.
        """
        require_tokens("x0", x0, self.vocabulary)
        require_same_shape("noise", noise.uniform, "x0", x0)
        replaced = ((x0.long() + noise.offset) % self.vocabulary).to(x0.dtype)
        return torch.where(noise.uniform < self.rate(x0, t), replaced, x0)

    def noise(
        self, x_t: Tokens, x0: Tokens, t: Time, *, generator: torch.Generator | None = None
    ) -> EditNoise:
        """A draw of the noise that turns x0 into x_t: o is known where they differ, else any."""
        require_tokens("x_t", x_t, self.vocabulary)
        require_tokens("x0", x0, self.vocabulary)
        require_same_shape("x0", x0, "x_t", x_t)
        replaced = x_t != x0
        uniform = self._below_or_above(replaced, self.rate(x_t, t), generator)
        known = (x_t.long() - x0.long()) % self.vocabulary
        return EditNoise(uniform, torch.where(replaced, known, self._offset(x_t, generator)))

    def renew(
        self, noise: EditNoise, rho: Time, *, generator: torch.Generator | None = None
    ) -> EditNoise:
        """Each token's noise, when and by what, drawn anew with probability ρ²."""
        part = check_rho(rho, noise.uniform)
        if isinstance(part, float) and part == 0:
            return noise
        anew = uniform_like(noise.uniform, generator) < part**2
        other = self._draw(noise.uniform, generator)
        return EditNoise(
            torch.where(anew, other.uniform, noise.uniform),
            torch.where(anew, other.offset, noise.offset),
        )

    def prior(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tokens:
        """Every token equally likely; int64 unless another integer dtype is asked for."""
        dtype = dtype or torch.int64
        x = integers(0, self.vocabulary, shape, device, generator)
        require_tokens("prior", x.to(dtype), self.vocabulary)
        return x.to(dtype)

    def predict(
        self, output: Float[Tensor, "batch ... vocabulary"], x_t: Tokens, t: Time
    ) -> Float[Tensor, "batch ... vocabulary"]:
        """Log-probabilities in float32 at least; every token is possible.

        Raises:
            TypeError: logits that are not floating-point, or x_t not integers.
            ValueError: logits of another shape than (batch, …, vocabulary), or t is no time here.
        """
        self._check_output(output, x_t)
        time_rows(t, x_t)
        return output.to(torch.promote_types(output.dtype, torch.float32)).log_softmax(-1)

    def loss(
        self,
        output: Float[Tensor, "batch ... vocabulary"],
        x0: Tokens,
        x_t: Tokens,
        noise: EditNoise,
        t: Time,
    ) -> Float[Tensor, " batch"]:
        """The cross-entropy of all tokens, mean over them.

        Raises:
            TypeError, ValueError: as in `predict`; or x0 is out of the vocabulary or of another
                shape than x_t.
        """
        self._check_output(output, x_t)
        require_tokens("x0", x0, self.vocabulary)
        require_same_shape("x0", x0, "x_t", x_t)
        time_rows(t, x_t)
        return sample_mean(cross_entropy(output, x0))

    def _offset(self, like: Tensor, generator: torch.Generator | None) -> Int[Tensor, "batch ..."]:
        return integers(1, self.vocabulary, like.shape, like.device, generator)

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> EditNoise:
        return EditNoise(uniform_like(like, generator), self._offset(like, generator))
