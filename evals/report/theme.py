"""Colours of the pictures, in a light and a dark form; the page's style sheet has the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

# Blues and greens for frequency rules, warm colours for distance rules: the two families of rules
# can be told apart at a glance. Ordered so that neighbours differ in lightness as well as hue.
FREQUENCY = ("#3b82d0", "#17a2a2", "#6b6fd4", "#57a64a", "#4fb0e8", "#8a9a2b", "#2f6f8f", "#7fbf9f")
DISTANCE = ("#e0532f", "#e39a1f", "#c2397a", "#9c5b2e", "#f07f5a", "#b8860b", "#d4574e", "#e8b04b")
BOTH = ("#9b4dca", "#c77dd6", "#7b3fa0", "#b06ab3")


@dataclass(frozen=True)
class Theme:
    """One form of the colours.

    Attributes:
        background: of the picture.
        text: of labels and axes.
        quiet: of grid lines and remarks.
        baseline: of the model as it is.
        none, all: ends of the scale of shares.
    """

    background: str
    text: str
    quiet: str
    baseline: str
    none: str
    all: str


LIGHT = Theme("#ffffff", "#1d2129", "#8a919c", "#1d2129", "#f1f3f6", "#175e8c")
DARK = Theme("#14171c", "#e4e7ec", "#7d8694", "#f4f6f9", "#242932", "#5cc3f2")


def theme(*, dark: bool) -> Theme:
    """The light or the dark form."""
    return DARK if dark else LIGHT


@dataclass(frozen=True)
class LineStyle:
    """How a variant is drawn: its colour, and whether its line is dashed."""

    color: str
    dashes: str
    width: float


def line_styles(
    variants: Sequence[str], parts: dict[str, dict[str, Any]], chosen: Theme
) -> dict[str, LineStyle]:
    """A style for each variant, by the family of its rules; log n scaling alone changes the dashes.

    Args:
        variants: labels.
        parts: label → the variant's parts, as in a run's configuration.
        chosen: the colours.
    """
    palettes = {"frequency": FREQUENCY, "distance": DISTANCE, "both": BOTH, "baseline": BOTH}
    numbers = {family: count() for family in palettes}
    styles = {}
    for variant in variants:
        named = parts[variant]
        kinds = {"frequency", "distance"} & named.keys()
        family = "both" if len(kinds) == 2 else kinds.pop() if kinds else "baseline"
        number = next(numbers[family])
        # A second model as it is must not look like the first.
        main = family == "baseline" and number == 0
        palette = (chosen.baseline,) if main else palettes[family]
        styles[variant] = LineStyle(
            color=palette[number % len(palette)],
            dashes="--" if "log_n" in named else "-",
            width=2.6 if main else 1.8,
        )
    return styles
