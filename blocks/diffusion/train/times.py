"""Which times a denoiser is trained at: objects that draw t in (0, 1), one for each sample.

    Uniform        every time alike; stratified, the batch's times are spread evenly
    LogitNormal    t = 1 / (1 + e^(−u)), u ~ N(mean, std²): the middle more often
    LogSNRNormal   log-SNR ~ N(mean, std²) through the schedule; EDM's ln σ ~ N(−1.2, 1.2²) is
                   log-SNR ~ N(2.4, 2.4²)
    Knots          (k + 1) / steps for k = 0 … steps − 1, where a table of betas is exact

Times stay off the two ends, where a schedule's α or σ can be 0 and a parametrisation singular.
Source: Esser et al., arXiv 2403.03206 (logit-normal); Karras et al., arXiv 2206.00364 (EDM);
Kingma et al., arXiv 2107.00630 (stratified times).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_number, require_positive
from ropewalk.blocks.diffusion.checks import described
from ropewalk.blocks.diffusion.schedule import Schedule

NEAREST = 2.0**-20
"""How near drawn times come to 0 and 1; float32 tells them from the ends."""


class Times(Protocol):
    """Draws times of training; any function of this form will do."""

    def __call__(
        self,
        count: int,
        schedule: Schedule,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Float[Tensor, " count"]:
        """`count` times in (0, 1), float64."""
        ...


@dataclass(frozen=True)
class Uniform:
    """t ~ U(low, high).

    Attributes:
        low: 0 ≤ low < high.
        high: ≤ 1.
        stratified: one time from each of `count` equal parts of the range, in random order: the
            same law of each time, less variance of the batch's mean loss.

    Raises:
        ValueError: the range is empty or leaves [0, 1].
    """

    low: float = 0.0
    high: float = 1.0
    stratified: bool = False

    def __post_init__(self) -> None:
        require_number("Uniform", low=self.low, high=self.high)
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(
                f"Uniform: expected 0 ≤ low < high ≤ 1, got low={self.low!r}, high={self.high!r}"
            )

    def __call__(
        self,
        count: int,
        schedule: Schedule,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Float[Tensor, " count"]:
        """See `Times`."""
        share = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
        if self.stratified:
            order = torch.randperm(count, generator=generator, device=device)
            share = (order + share) / count
        return _off_the_ends(self.low + (self.high - self.low) * share)


@dataclass(frozen=True)
class LogitNormal:
    """ln(t / (1 − t)) ~ N(mean, std²).

    Attributes:
        mean: above 0 means noisier.
        std: > 0.

    Raises:
        ValueError: `std` is not above 0.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        require_number("LogitNormal", mean=self.mean)
        require_positive("LogitNormal", std=self.std)

    def __call__(
        self,
        count: int,
        schedule: Schedule,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Float[Tensor, " count"]:
        """See `Times`."""
        normal = torch.randn(count, generator=generator, device=device, dtype=torch.float64)
        return _off_the_ends(torch.sigmoid(self.mean + self.std * normal))


@dataclass(frozen=True)
class LogSNRNormal:
    """log(α² / σ²) ~ N(mean, std²), whatever the schedule.

    Attributes:
        mean: above 0 means cleaner. The default is EDM's.
        std: > 0.

    Raises:
        ValueError: `std` is not above 0.
    """

    mean: float = 2.4
    std: float = 2.4

    def __post_init__(self) -> None:
        require_number("LogSNRNormal", mean=self.mean)
        require_positive("LogSNRNormal", std=self.std)

    def __call__(
        self,
        count: int,
        schedule: Schedule,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Float[Tensor, " count"]:
        """See `Times`; values beyond the schedule's ends are moved to them."""
        normal = torch.randn(count, generator=generator, device=device, dtype=torch.float64)
        return _off_the_ends(schedule.time_at(self.mean + self.std * normal))


@dataclass(frozen=True)
class Knots:
    """t = (k + 1) / steps with k uniform in 0 … steps − 1, as DDPM trains.

    Attributes:
        steps: ≥ 1; the number of betas of the table.

    Raises:
        ValueError: `steps` is below 1.
        TypeError: `steps` is not an integer.
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        require_integer("Knots", 1, steps=self.steps)

    def __call__(
        self,
        count: int,
        schedule: Schedule,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> Float[Tensor, " count"]:
        """See `Times`; the last knot is t = 1 itself."""
        knot = torch.randint(self.steps, (count,), generator=generator, device=device)
        return (knot.double() + 1) / self.steps


def require_times(times: object) -> None:
    """Raises unless this draws times.

    Raises:
        TypeError: a name, a class, or what cannot be called.
    """
    if isinstance(times, type) or not callable(times):
        raise TypeError(
            "times: expected an object that draws them, such as Uniform(), LogitNormal() or "
            f"LogSNRNormal(), or a function of this form, got {described(times)}"
        )


def _off_the_ends(times: Tensor) -> Tensor:
    return times.clamp(NEAREST, 1 - NEAREST)
