"""Degradations for `Cold`: functions of (x, severity) that keep the shape and are no noise.

    blur      heat spreads: a Gaussian blur that mirrors at the borders, computed on cosine modes
    pixelate  averages over ever larger blocks, mixed between one size and its double
    inpaint   places are hidden one after another, from the centre, along the scan, or scattered
    fade      (1 − s)·x + s·fill

The severity s runs from 0, nothing, to 1, all the way; it is 0-d or shaped (batch, 1, …, 1). A
function of one's own needs no class: `Cold(lambda x, s: x * (1 - s), schedule)`.

Source: Bansal et al., arXiv 2208.09392, §5; the blur as heat is Rissanen et al., arXiv 2206.13397.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer, require_number, require_positive
from ropewalk.blocks.diffusion.checks import described
from ropewalk.kernels.autocast import suspended

Degradation = Callable[[Tensor, Tensor], Tensor]
"""degradation(x (batch, …), severity in [0, 1]) -> x of the same shape."""

ORDERS = ("centre", "scan", "scattered")


def along(
    x: Float[Tensor, "batch ..."], axis: int, matrices: Float[Tensor, "samples size size"]
) -> Float[Tensor, "batch ..."]:
    """Multiplies the given axis with a symmetric matrix, one for all samples or one each."""
    moved = x.movedim(axis, -1)
    lines = moved.reshape(x.shape[0], math.prod(moved.shape[1:-1]), moved.shape[-1])
    with suspended(x):  # a degradation is data, not a layer
        lines = lines @ matrices
    return lines.reshape(moved.shape).movedim(-1, axis)


def require_axes(x: Tensor, axes: int, name: str) -> tuple[int, ...]:
    """The last axes of x, as negative numbers.

    Raises:
        ValueError: x has fewer axes behind its batch.
    """
    if x.ndim <= axes:
        raise ValueError(
            f"{name}: expected a batch with at least {axes} axes behind it, got shape "
            f"{tuple(x.shape)}; give {name}(axes=…) the number of axes to degrade"
        )
    return tuple(range(-axes, 0))


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur of standard deviation severity·width·size along each axis.

    Attributes:
        width: the deviation at severity 1 as a share of the axis; at 1 next to nothing but the mean
            is left.
        axes: how many of the last axes are blurred.
    """

    width: float = 1.0
    axes: int = 2

    def __post_init__(self) -> None:
        require_positive("Blur", width=self.width)
        require_integer("Blur", 1, axes=self.axes)

    def __call__(self, x: Float[Tensor, "batch ..."], severity: Tensor) -> Tensor:
        """The blurred x; only rounding at severity 0."""
        for axis in require_axes(x, self.axes, "Blur"):
            size = x.shape[axis]
            mode = torch.arange(size, device=x.device, dtype=torch.float64)
            cosines = (math.pi / size * mode[:, None] * (mode + 0.5)).cos() * (2 / size) ** 0.5
            cosines = torch.cat((cosines[:1] / 2**0.5, cosines[1:])).to(x.dtype)
            mode = mode.to(x.dtype)
            # Mode k turns πk/size per place; a blur of deviation d damps it by exp(−½(dπk/size)²).
            exponents = (math.pi * self.width * severity.reshape(-1, 1) * mode).square() / 2
            with suspended(x):
                matrices = cosines.T @ ((-exponents).exp().unsqueeze(-1) * cosines)
            x = along(x, axis, matrices)
        return x


@dataclass(frozen=True)
class Pixelate:
    """Averages over blocks of 1, 2, 4, … places, up to the whole axis at severity 1.

    Attributes:
        axes: how many of the last axes are pixelated.
    """

    axes: int = 2

    def __post_init__(self) -> None:
        require_integer("Pixelate", 1, axes=self.axes)

    def __call__(self, x: Float[Tensor, "batch ..."], severity: Tensor) -> Tensor:
        """The pixelated x: between two sizes of blocks, a mixture of both."""
        axes = require_axes(x, self.axes, "Pixelate")
        levels = max(x.shape[axis] - 1 for axis in axes).bit_length()
        if levels == 0:
            return x.clone()
        position = severity * levels
        result = x * (1 - position).clamp(min=0)
        for level in range(1, levels + 1):
            averaged = x
            for axis in axes:
                block = torch.arange(x.shape[axis], device=x.device) >> level
                together = (block[:, None] == block).to(x.dtype)
                averaged = along(averaged, axis, together / together.sum(1, keepdim=True))
            result = result + averaged * (1 - (position - level).abs()).clamp(min=0)
        return result


@dataclass(frozen=True)
class Inpaint:
    """Hides places one after another; at severity 1 all of them.

    Attributes:
        order: "centre" hides from the centre outwards, "scan" from the first place to the last,
            "scattered" spreads what is hidden evenly, always alike.
        fill: what hidden places hold.
        axes: how many of the last axes are places; the others are hidden together.
    """

    order: str = "centre"
    fill: float = 0.0
    axes: int = 2

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(
                f"Inpaint.order: expected one of {', '.join(ORDERS)}, got {self.order!r}"
            )
        require_number("Inpaint", fill=self.fill)
        require_integer("Inpaint", 1, axes=self.axes)

    def __call__(self, x: Float[Tensor, "batch ..."], severity: Tensor) -> Tensor:
        """`fill` where the severity has reached a place's rank, x elsewhere."""
        axes = require_axes(x, self.axes, "Inpaint")
        rank = self._rank([x.shape[axis] for axis in axes], x)
        return torch.where(severity >= rank, self.fill, x)

    def _rank(self, sizes: list[int], x: Tensor) -> Float[Tensor, "..."]:
        """In which order places are hidden, from 1/places to 1."""
        places = math.prod(sizes)
        if self.order == "scan":
            key = torch.arange(places, device=x.device, dtype=torch.float64)
        else:
            key = torch.zeros(sizes, device=x.device, dtype=torch.float64)
            for axis, size in enumerate(sizes):
                index = torch.arange(size, device=x.device, dtype=torch.float64)
                index = index.reshape(-1, *(1,) * (len(sizes) - axis - 1))
                if self.order == "centre":
                    key = key + ((index + 0.5) / size - 0.5).square()
                else:
                    key = key + index * _plastic(len(sizes)) ** -(axis + 1)
            key = key.flatten() % 1.0 if self.order == "scattered" else key.flatten()
        rank = key.argsort(stable=True).argsort()
        return ((rank + 1).to(x.dtype) / places).reshape(sizes)


def _plastic(axes: int) -> float:
    """The root of g^(axes + 1) = g + 1, whose powers make the most even sequence of points."""
    root = 1.5
    for _ in range(60):
        root = (1 + root) ** (1 / (axes + 1))
    return root


@dataclass(frozen=True)
class Fade:
    """(1 − s)·x + s·fill.

    Attributes:
        fill: what everything fades to.
    """

    fill: float = 0.0

    def __post_init__(self) -> None:
        require_number("Fade", fill=self.fill)

    def __call__(self, x: Float[Tensor, "batch ..."], severity: Tensor) -> Tensor:
        """The faded x."""
        return (1 - severity) * x + severity * self.fill


DEGRADATIONS: dict[str, Degradation] = {
    "blur": Blur(),
    "pixelate": Pixelate(),
    "inpaint": Inpaint(),
    "fade": Fade(),
}
"""Ready-made degradations by name, for pictures (batch, channels, height, width)."""


def degradation(which: str | Degradation) -> Degradation:
    """The degradation of that name, or the function itself.

    Raises:
        ValueError: no degradation has that name.
        TypeError: neither a name nor a function.
    """
    if isinstance(which, str):
        if which not in DEGRADATIONS:
            raise ValueError(
                f"degradation: expected one of {', '.join(DEGRADATIONS)} or a function of "
                f"(x, severity), got {which!r}"
            )
        return DEGRADATIONS[which]
    if not callable(which):
        raise TypeError(
            f"degradation: expected a name or a function of (x, severity), got {described(which)}"
        )
    return which
