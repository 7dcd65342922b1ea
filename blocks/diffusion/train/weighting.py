"""How much each time counts in the loss, as a factor on what the process's own loss gives.

An error of one parametrisation is an error of another times a gain that depends on α and σ only.
So "epsilon", "v", "flow", … weigh any network as if it were trained in that parametrisation:

    |ε̂ − ε|² = SNR·|x̂₀ − x₀|²        |v̂ − v|² = ((α² + σ²)/σ)²·|x̂₀ − x₀|²      SNR = α²/σ²

`MinSNR(γ)` counts min(SNR, γ)·|x̂₀ − x₀|². Any function of (process, t) is a weighting, too.

Source: Salimans and Ho, arXiv 2202.00512, §4; Hang et al., arXiv 2303.09556 (min-SNR).
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_positive
from ropewalk.blocks.diffusion.checks import described
from ropewalk.blocks.diffusion.parametrisation import (
    PARAMETRISATIONS,
    Parametrisation,
    gain,
    parametrisation,
)
from ropewalk.blocks.diffusion.process import Affine, Process

Weighting = str | Parametrisation | Callable[[Affine, Tensor], Tensor]
"""A parametrisation or its name, or a function from process and times (batch,) to weights."""


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, γ) on the error of x₀: times of little noise do not drown the rest.

    Attributes:
        gamma: γ > 0.

    Raises:
        ValueError: γ is not above 0.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        require_positive("MinSNR", gamma=self.gamma)

    def __call__(self, process: Affine, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The factor on the process's own loss, float64."""
        alpha, sigma = process.schedule.alpha(t.double()), process.schedule.sigma(t.double())
        bounded = (alpha / sigma).square().clamp(max=self.gamma)
        return bounded * gain(process.parametrisation, "x0", alpha, sigma).square()


def loss_weights(
    weighting: Weighting, process: Process, t: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """What `process.loss` is multiplied with.

    Raises:
        ValueError: an unknown name, a process whose loss is no squared error of a parametrisation,
            or weights of another shape than the times.
        TypeError: neither a name nor an object that can be called.
    """
    if not isinstance(process, Affine):
        raise ValueError(
            f"weighting: expected None for the process {type(process).__name__}, whose loss is no "
            f"squared error of a parametrisation, got {described(weighting)}"
        )
    if isinstance(weighting, str) and weighting not in PARAMETRISATIONS:
        raise ValueError(
            f"weighting: expected one of {', '.join(PARAMETRISATIONS)}, or an "
            f"object such as MinSNR(5.0), got {weighting!r}"
        )
    if isinstance(weighting, str | Parametrisation):
        wanted = parametrisation(weighting)
        alpha, sigma = process.schedule.alpha(t.double()), process.schedule.sigma(t.double())
        return gain(process.parametrisation, wanted, alpha, sigma).square()
    if isinstance(weighting, type) or not callable(weighting):
        raise TypeError(
            "weighting: expected the name of a parametrisation, an object such as MinSNR(5.0), or "
            f"a function of (process, t), got {described(weighting)}"
        )
    weights = weighting(process, t)
    if weights.shape != t.shape:
        raise ValueError(
            f"weighting: expected weights of the times' shape {tuple(t.shape)}, "
            f"got {tuple(weights.shape)}"
        )
    return weights
