"""Parametrisations: what a model's output means, and exact conversion between all of them.

With x_t = αx₀ + σε, every parametrisation is a linear form of data and noise, F = a·x₀ + b·ε:

    epsilon   ε
    x0        x₀
    v         αε − σx₀             the velocity of the angle; Salimans and Ho, arXiv 2202.00512
    score     −ε/σ                 ∇ log p(x_t)
    flow      ε − x₀               dx_t/dt of rectified flow; some write x₀ − ε
    edm       (σx₀/σ_d − ασ_dε)/√(α²σ_d² + σ²)           Karras et al., arXiv 2206.00364, §5
              x₀ = c_skip·x_t + c_out·F; the network is given c_in·x_t. For α = 1 their equation 7

So two of x_t, F and G determine the third. With Δ = αb − σa,

    G = (a_G·b_F − b_G·a_F)/Δ_F · x_t  +  Δ_G/Δ_F · F

which divides by nothing but the source's own Δ: α for epsilon, −σ for x0, α² + σ² for v, α + σ for
flow. The score is a multiple of epsilon, so these two never divide by α between each other.

Where a needed divisor is exactly zero (epsilon at α = 0, x0 to epsilon at σ = 0) the output says
nothing about what is asked for. Zero is returned, the centre of standardised data and of the noise:
a sampler's step from there equals starting at its next time from the prior.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_positive
from ropewalk.blocks.diffusion.checks import wide

Data = Float[Tensor, "batch ..."]
Rows = Float[Tensor, "..."]
"""α or σ, 0-d or shaped to multiply the data."""


def reciprocal(divisor: Rows) -> Rows:
    """1 / divisor, and 0 where the divisor is 0; so are the gradients."""
    zero = divisor == 0
    return divisor.masked_fill(zero, 1).reciprocal().masked_fill(zero, 0)


@dataclass(frozen=True)
class Parametrisation(ABC):
    """Base class: a form F = a·x₀ + b·ε, possibly scaled.

    Methods take data in any floating dtype and α and σ that broadcast over it. They compute in
    float32 at least and round once, to the promoted dtype of the data they are given.

    Attributes:
        name: its name in `PARAMETRISATIONS`.
    """

    name: ClassVar[str]

    @abstractmethod
    def form(self, alpha: Rows, sigma: Rows) -> tuple[Rows, Rows]:
        """(a, b) of the form, before it is scaled."""

    @abstractmethod
    def determinant(self, alpha: Rows, sigma: Rows) -> Rows:
        """Δ = αb − σa of the form, before it is scaled; written out so that nothing cancels."""

    @property
    def base(self) -> "Parametrisation":
        """The parametrisation of which this one is a multiple: itself, but for the score."""
        return self

    def scaled(self, form: Data, sigma: Rows) -> Data:
        """The output that belongs to a value of the form."""
        return form

    def unscaled(self, output: Data, sigma: Rows) -> Data:
        """The value of the form that an output stands for."""
        return output

    def input(self, x_t: Data, alpha: Rows, sigma: Rows) -> Data:
        """What the network is given instead of x_t."""
        return x_t

    def to_x0(self, output: Data, x_t: Data, alpha: Rows, sigma: Rows) -> Data:
        """x̂₀, the data that the output predicts."""
        return convert(output, x_t, alpha, sigma, self, PARAMETRISATIONS["x0"])

    def to_epsilon(self, output: Data, x_t: Data, alpha: Rows, sigma: Rows) -> Data:
        """ε̂, the noise that the output predicts."""
        return convert(output, x_t, alpha, sigma, self, PARAMETRISATIONS["epsilon"])

    def from_x0(self, x0: Data, x_t: Data, alpha: Rows, sigma: Rows) -> Data:
        """The output that predicts x0. Divides by σ unless this is x0; see `target`."""
        return convert(x0, x_t, alpha, sigma, PARAMETRISATIONS["x0"], self)

    def target(self, x0: Data, noise: Data, alpha: Rows, sigma: Rows) -> Data:
        """What a model is trained to give, from the data and its noise; divides only for a score.

        Unlike `from_x0` it keeps every digit where σ is small.
        """
        a, b = self.form(alpha, sigma)
        dtype = wide(x0, noise, alpha)
        result = self.scaled(a * x0.to(dtype) + b * noise.to(dtype), sigma)
        return result.to(torch.promote_types(x0.dtype, noise.dtype))


@dataclass(frozen=True)
class Epsilon(Parametrisation):
    """The noise."""

    name: ClassVar[str] = "epsilon"

    def form(self, alpha: Rows, sigma: Rows) -> tuple[Rows, Rows]:
        return torch.zeros_like(alpha), torch.ones_like(sigma)

    def determinant(self, alpha: Rows, sigma: Rows) -> Rows:
        return alpha


@dataclass(frozen=True)
class X0(Parametrisation):
    """The data."""

    name: ClassVar[str] = "x0"

    def form(self, alpha: Rows, sigma: Rows) -> tuple[Rows, Rows]:
        return torch.ones_like(alpha), torch.zeros_like(sigma)

    def determinant(self, alpha: Rows, sigma: Rows) -> Rows:
        return -sigma


@dataclass(frozen=True)
class V(Parametrisation):
    """v = αε − σx₀."""

    name: ClassVar[str] = "v"

    def form(self, alpha: Rows, sigma: Rows) -> tuple[Rows, Rows]:
        return -sigma, alpha

    def determinant(self, alpha: Rows, sigma: Rows) -> Rows:
        return alpha.square() + sigma.square()


@dataclass(frozen=True)
class Score(Epsilon):
    """∇ log p(x_t) = −ε/σ."""

    name: ClassVar[str] = "score"

    @property
    def base(self) -> Parametrisation:
        return PARAMETRISATIONS["epsilon"]

    def scaled(self, form: Data, sigma: Rows) -> Data:
        return -form * reciprocal(sigma)

    def unscaled(self, output: Data, sigma: Rows) -> Data:
        return -sigma * output


@dataclass(frozen=True)
class Flow(Parametrisation):
    """ε − x₀."""

    name: ClassVar[str] = "flow"

    def form(self, alpha: Rows, sigma: Rows) -> tuple[Rows, Rows]:
        return -torch.ones_like(alpha), torch.ones_like(sigma)

    def determinant(self, alpha: Rows, sigma: Rows) -> Rows:
        return alpha + sigma


@dataclass(frozen=True)
class EDM(Parametrisation):
    """EDM's preconditioning, for any α: input and target have unit variance at every time.

    For sigma_data = 1 and α² + σ² = 1 the network gives −v.

    Attributes:
        sigma_data: the standard deviation of the data.
    """

    name: ClassVar[str] = "edm"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require_positive("EDM", sigma_data=self.sigma_data)

    def _deviation(self, alpha: Rows, sigma: Rows) -> Rows:
        """The standard deviation of x_t."""
        return ((alpha * self.sigma_data).square() + sigma.square()).sqrt()

    def form(self, alpha: Rows, sigma: Rows) -> tuple[Rows, Rows]:
        deviation = self._deviation(alpha, sigma)
        return sigma / (self.sigma_data * deviation), -self.sigma_data * alpha / deviation

    def determinant(self, alpha: Rows, sigma: Rows) -> Rows:
        return -self._deviation(alpha, sigma) / self.sigma_data

    def input(self, x_t: Data, alpha: Rows, sigma: Rows) -> Data:
        return (x_t.to(wide(x_t, alpha)) / self._deviation(alpha, sigma)).to(x_t.dtype)


PARAMETRISATIONS: dict[str, Parametrisation] = {
    each.name: each for each in (Epsilon(), X0(), V(), Score(), Flow(), EDM())
}
"""All parametrisations by name."""


def parametrisation(which: str | Parametrisation) -> Parametrisation:
    """The parametrisation of that name, or the object itself.

    Raises:
        ValueError: no parametrisation has that name.
        TypeError: neither a name nor a `Parametrisation`.
    """
    if isinstance(which, Parametrisation):
        return which
    if not isinstance(which, str):
        raise TypeError(
            f"parametrisation: expected a name or a Parametrisation, got {type(which).__name__}"
        )
    if which not in PARAMETRISATIONS:
        raise ValueError(
            f"parametrisation: expected one of {', '.join(PARAMETRISATIONS)}, got {which!r}"
        )
    return PARAMETRISATIONS[which]


def convert(
    output: Data,
    x_t: Data,
    alpha: Rows,
    sigma: Rows,
    source: str | Parametrisation,
    target: str | Parametrisation,
) -> Data:
    """The same prediction in another parametrisation; the equation is the module's.

    Args:
        output: the prediction as `source` reads it.
        x_t: the corrupted data it was made from.
        alpha: α(t), 0-d or broadcasting over the data.
        sigma: σ(t), likewise.
        source: a name or a `Parametrisation`.
        target: likewise.

    Returns:
        The prediction as `target` reads it, in the promoted dtype of output and x_t.
    """
    source, target = parametrisation(source), parametrisation(target)
    if source == target:
        return output
    dtype = wide(output, x_t, alpha)
    form = source.unscaled(output.to(dtype), sigma)
    if source.base != target.base:
        (a, b), divisor = source.base.form(alpha, sigma), source.base.determinant(alpha, sigma)
        a_target, b_target = target.base.form(alpha, sigma)
        on_x = a_target * b - b_target * a
        on_form = target.base.determinant(alpha, sigma)
        form = (on_x * x_t.to(dtype) + on_form * form) * reciprocal(divisor)
    return target.scaled(form, sigma).to(torch.promote_types(output.dtype, x_t.dtype))


def gain(
    source: str | Parametrisation, target: str | Parametrisation, alpha: Rows, sigma: Rows
) -> Rows:
    """By how much an error of the output grows from `source` to `target`: Δ_target/Δ_source.

    Its square turns a mean squared error in one parametrisation into that in the other.
    """
    source, target = parametrisation(source), parametrisation(target)
    ratio = torch.ones_like(alpha * sigma)
    if source.base != target.base:
        ratio = ratio * target.base.determinant(alpha, sigma)
        ratio = ratio * reciprocal(source.base.determinant(alpha, sigma))
    return target.scaled(source.unscaled(ratio, sigma), sigma)
