"""Rotary position in n dimensions: each plane turns with one coordinate of the position.

    φ_p = coordinate_{a(p)} · θ_p

The rotation is block-diagonal over axes, so that it depends on coordinate differences only, axis by
axis (kexue.fm/archives/8397). Which axis a(p) and which frequency a plane has is the arrangement:

    own          every axis has a section of planes and a whole spectrum of its own in it
    bands        one spectrum; each axis has a contiguous band of it (mRoPE, arXiv 2409.12191)
    alternating  one spectrum, dealt out to the axes in turn (RoPE-Tie, kexue.fm/archives/10040)

With one shared spectrum a position whose coordinates are all n is rotated exactly as position n of
the one-dimensional embedding, so that text and images can share a model; `own` does not have that,
but treats all axes alike and is what image-only models use.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.rotary.checks import require_base, require_rotary_dim
from ropewalk.blocks.rotary.embedding import cosine_sine
from ropewalk.blocks.rotary.frequency import Default, FrequencyRule
from ropewalk.kernels.rotary import LAYOUTS, Layout, rotate

Arrangement = Literal["own", "bands", "alternating"]


def grid_coordinates(
    *sizes: int, device: torch.device | str | None = None
) -> Int[Tensor, "seq axes"]:
    """Integer coordinates of a grid in row-major order: (rows, columns), (frames, rows, columns), …

    Args:
        sizes: number of cells along each axis, slowest axis first.
        device: where to put the result.

    Returns:
        Int64 (product of sizes, number of axes).

    Raises:
        ValueError: no size is given or one is below 1.
    """
    if not sizes:
        raise ValueError("grid_coordinates: expected the grid's sizes, such as (14, 14), got none")
    require_integer("grid_coordinates", 1, **{f"sizes[{i}]": size for i, size in enumerate(sizes)})
    axes = [torch.arange(size, device=device) for size in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def axial_frequencies(
    rotary_dim: int,
    sections: Sequence[int],
    *,
    base: float = 10000.0,
    frequency: FrequencyRule | Sequence[FrequencyRule] | None = None,
    arrangement: Arrangement = "own",
) -> tuple[Float[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """The frequency of each plane and the axis whose coordinate turns it.

    Args:
        rotary_dim: number of rotated dimensions.
        sections: number of planes of each axis; they sum to rotary_dim / 2.
        base: the base of the spectrum or spectra.
        frequency: the frequency rule, or with `own` one for each axis; the default rule if None.
        arrangement: see the module's docstring. `alternating` deals planes out in turn until an
            axis has its number.

    Returns:
        Float32 frequencies and int64 axis indices, both (rotary_dim / 2), on the CPU.
    """
    rules = _rules_of_axes(frequency, len(sections), arrangement)
    if arrangement == "own":
        spectra = [
            rule.inverse_frequencies(2 * section, base)
            for rule, section in zip(rules, sections, strict=True)
        ]
        return torch.cat(spectra), _banded_axes(sections)
    spectrum = rules[0].inverse_frequencies(rotary_dim, base)
    return spectrum, _banded_axes(sections) if arrangement == "bands" else _dealt_axes(sections)


class AxialRotary(nn.Module):
    """Rotary position embedding for positions with several coordinates: images, video, mixtures.

    It has no parameters and nothing in its state dict, and keeps its frequencies in float32
    whatever the module is cast to.

    Example:
        >>> rotary = AxialRotary(64, axes=2)
        >>> query = rotary.rotate(query, grid_coordinates(14, 14))  # query: batch heads 196 64

    Args:
        head_dim: width of a head.
        axes: number of coordinates: 2 for images, 3 for video.
        base: the base of the frequencies; 100 is common for small grids.
        frequency: the frequency rule, or with `own` one for each axis, for grids that grew more on
            one axis than on another; none may depend on the context's length.
        layout: which dimensions are pairs, `half` or `interleaved`.
        rotary_fraction: the leading int(head_dim · rotary_fraction) dimensions are rotated.
        arrangement: how planes and frequencies go to the axes; see the module's docstring.
        sections: number of planes of each axis; equal numbers if None.

    Raises:
        TypeError: `frequency` is not a frequency rule, or a sequence of such.
        ValueError: rules for axes that share a spectrum, or another number of them; the planes
            cannot be shared out, or another argument is out of its range.
    """

    _frequencies: Tensor
    _axis: Tensor

    def __init__(
        self,
        head_dim: int,
        axes: int = 2,
        *,
        base: float = 10000.0,
        frequency: FrequencyRule | Sequence[FrequencyRule] | None = None,
        layout: Layout = "half",
        rotary_fraction: float = 1.0,
        arrangement: Arrangement = "own",
        sections: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        require_integer("AxialRotary", 1, head_dim=head_dim, axes=axes)
        require_base(base)
        if layout not in LAYOUTS:
            raise ValueError(
                f"AxialRotary.layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}"
            )
        if arrangement not in get_args(Arrangement):
            raise ValueError(
                "AxialRotary.arrangement: expected one of "
                f"{', '.join(get_args(Arrangement))}, got {arrangement!r}"
            )
        rules = _rules_of_axes(frequency, axes, arrangement)
        if not 0 < rotary_fraction <= 1:
            raise ValueError(
                f"AxialRotary.rotary_fraction: expected 0 < fraction ≤ 1, got {rotary_fraction}"
            )
        self.head_dim = head_dim
        self.rotary_dim = int(head_dim * rotary_fraction)
        require_rotary_dim(self.rotary_dim)
        self.axes = axes
        self.base = base
        self.frequency = rules[0] if len(set(rules)) == 1 else rules
        self.layout: Layout = layout
        self.arrangement: Arrangement = arrangement
        self.sections = _checked_sections(sections, axes, self.rotary_dim)
        self.register_buffer("_frequencies", torch.empty(0), persistent=False)
        self.register_buffer("_axis", torch.empty(0, dtype=torch.int64), persistent=False)
        self._frequencies, self._axis = self._tables()

    def _tables(self) -> tuple[Tensor, Tensor]:
        return axial_frequencies(
            self.rotary_dim,
            self.sections,
            base=self.base,
            frequency=self.frequency,
            arrangement=self.arrangement,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AxialRotary":
        # As in RotaryEmbedding: only the device of a cast or `to_empty` is taken.
        super()._apply(fn, recurse)
        if not self._frequencies.is_meta:
            device = self._frequencies.device
            self._frequencies, self._axis = (table.to(device) for table in self._tables())
        return self

    def attention_factor(self) -> float | Float[Tensor, " pairs"]:
        """Factor on cos and sin; the logits get its square. One for each plane if axes differ."""
        if isinstance(self.frequency, FrequencyRule):
            return self.frequency.attention_factor()
        factors = [
            rule.attention_factor()
            for rule, section in zip(self.frequency, self.sections, strict=True)
            for _ in range(section)
        ]
        return torch.tensor(factors, device=self._frequencies.device)

    def forward(
        self, coordinates: Num[Tensor, "*batch seq axes"]
    ) -> tuple[Float[Tensor, "*batch seq pairs"], Float[Tensor, "*batch seq pairs"]]:
        """Cosines and sines at the given coordinates.

        Args:
            coordinates: one position per token, integers or float32/float64; may be negative or
                fractional (a grid centred on 0, or resized to the trained resolution).

        Returns:
            cos and sin, float32 (float64 for float64 coordinates), times the attention factor.

        Raises:
            TypeError: the coordinates are half-precision.
            ValueError: the number of coordinates is not `axes`.
        """
        if coordinates.ndim < 2 or coordinates.shape[-1] != self.axes:
            raise ValueError(
                f"coordinates: expected (…, seq, {self.axes}), got {tuple(coordinates.shape)}"
            )
        frequencies, axis = self._frequencies, self._axis
        if frequencies.is_meta:
            frequencies, axis = self._tables()
        device = coordinates.device
        per_pair = coordinates.index_select(-1, axis.to(device))
        factor = self.attention_factor()
        factor = factor.to(device) if isinstance(factor, Tensor) else factor
        return cosine_sine(per_pair, frequencies.to(device), factor)

    def rotate(
        self,
        x: Float[Tensor, "*batch heads seq head_dim"],
        coordinates: Num[Tensor, "*batch seq axes"],
    ) -> Float[Tensor, "*batch heads seq head_dim"]:
        """Rotates queries or keys to their coordinates.

        Args:
            x: queries or keys.
            coordinates: (seq, axes) for all sequences alike, or (batch, seq, axes).

        Returns:
            The rotated tensor in the dtype of `x`; computed in float32 (float64 for float64 `x`).
        """
        cos, sin = self(coordinates)
        if coordinates.ndim > 2:
            cos, sin = cos.unsqueeze(-3), sin.unsqueeze(-3)
        return rotate(x, cos, sin, layout=self.layout)

    def extra_repr(self) -> str:
        return (
            f"{self.head_dim}, axes={self.axes}, base={self.base}, frequency={self.frequency}, "
            f"arrangement={self.arrangement}, sections={self.sections}, layout={self.layout}"
        )


def _rules_of_axes(
    frequency: FrequencyRule | Sequence[FrequencyRule] | None, axes: int, arrangement: Arrangement
) -> tuple[FrequencyRule, ...]:
    """A rule for each axis; one spectrum has one rule for all."""
    if frequency is None or isinstance(frequency, FrequencyRule):
        rules = (Default() if frequency is None else frequency,) * axes
    elif isinstance(frequency, Sequence) and not isinstance(frequency, str):
        rules = tuple(frequency)
        if len(rules) != axes:
            raise ValueError(
                f"AxialRotary.frequency: expected one rule, or {axes}, one for each axis, got "
                f"{len(rules)}"
            )
    else:
        raise TypeError(f"AxialRotary.frequency: expected a frequency rule, got {frequency!r}")
    for rule in rules:
        if not isinstance(rule, FrequencyRule):
            raise TypeError(f"AxialRotary.frequency: expected a frequency rule, got {rule!r}")
        if rule.depends_on_length:
            raise ValueError(
                f"AxialRotary.frequency: expected a rule that does not depend on the length, which "
                f"a grid has none of, got {rule}; use a static rule such as NTKAware"
            )
    if arrangement != "own" and len(set(rules)) > 1:
        raise ValueError(
            f"AxialRotary.frequency: expected one rule for a spectrum that the axes share "
            f"({arrangement}), got {len(set(rules))}; use arrangement='own'"
        )
    return rules


def _checked_sections(sections: Sequence[int] | None, axes: int, rotary_dim: int) -> list[int]:
    pairs = rotary_dim // 2
    if sections is None:
        if pairs % axes:
            raise ValueError(
                f"AxialRotary: expected rotary_dim divisible by 2·axes = {2 * axes}, got "
                f"{rotary_dim}; pass `sections`, {axes} numbers of planes that sum to {pairs}"
            )
        return [pairs // axes] * axes
    require_integer("AxialRotary", 1, **{f"sections[{i}]": n for i, n in enumerate(sections)})
    if len(sections) != axes or sum(sections) != pairs:
        raise ValueError(
            f"AxialRotary.sections: expected {axes} numbers that sum to rotary_dim/2 = {pairs}, "
            f"got {list(sections)}"
        )
    return list(sections)


def _banded_axes(sections: Sequence[int]) -> Int[Tensor, " pairs"]:
    """0 … 0 1 … 1 2 … 2."""
    owners = [axis for axis, section in enumerate(sections) for _ in range(section)]
    return torch.tensor(owners, dtype=torch.int64, device="cpu")


def _dealt_axes(sections: Sequence[int]) -> Int[Tensor, " pairs"]:
    """0 1 2 0 1 2 …, leaving out an axis that has all its planes."""
    rounds = range(max(sections))
    owners = [axis for turn in rounds for axis, n in enumerate(sections) if turn < n]
    return torch.tensor(owners, dtype=torch.int64, device="cpu")
