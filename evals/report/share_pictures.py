"""Pictures of shares of pass keys found, a heat map per variant.

Over prompt length × depth, and over the number of contexts × the way of reading them.
"""

from collections.abc import Sequence
from math import ceil, isfinite
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ropewalk.evals.report.canvas import png
from ropewalk.evals.report.many_contexts import READERS
from ropewalk.evals.report.summary import Summary
from ropewalk.evals.report.theme import Theme, theme

COLUMNS = (4, 5)
# Inches of a map's column and row, and of what stands around a map.
CELL = (0.5, 0.27)
# Inches of a title's character and line, and of the narrowest picture, for a title to read well.
CHARACTER, LINE = 0.09, 0.18
NARROWEST = 5.0


def retrieval_picture(summary: Summary, *, dark: bool = False) -> bytes:
    """Share of pass keys found over length and depth, a heat map per variant, as PNG.

    Args:
        summary: of a run with passkey.
        dark: for a dark background.
    """
    variants = [
        variant
        for variant in summary.variants
        if any(name == variant for name, _ in summary.retrieval_by_length)
    ]
    maps = {
        variant: [
            [
                cell.value if (cell := summary.retrieval.get((variant, length, depth))) else None
                for length in summary.lengths
            ]
            for depth in summary.depths
        ]
        for variant in variants
    }
    return _heat_maps(
        maps,
        # The number of columns that leaves the fewest places empty.
        columns=min(len(variants), min(COLUMNS, key=lambda number: -len(variants) % number)),
        rows_are=[f"{depth:.0%}" for depth in summary.depths],
        columns_are=[str(length) for length in summary.lengths],
        title=f"Pass keys found, by context length and depth ({summary.model}, trained at "
        f"{summary.trained_length} tokens)",
        below="context length (tokens)",
        beside="depth of the pass key",
        chosen=theme(dark=dark),
    )


def contexts_picture(summary: Summary, *, dark: bool = False) -> bytes:
    """Share of pass keys found over the number of contexts and the reader, as PNG.

    Args:
        summary: of a run with nbce.
        dark: for a dark background.
    """
    contexts = summary.contexts
    if contexts is None:
        raise ValueError("expected the summary of a run with the task nbce")
    variants = list(dict.fromkeys(variant for variant, _ in contexts.rows))
    readers = [name for name in READERS if any(name == reader for _, reader in contexts.rows)]
    maps = {
        variant: [
            [
                cell.value if (cell := contexts.shares.get((variant, reader, count))) else None
                for count in contexts.counts
            ]
            for reader in readers
        ]
        for variant in variants
    }
    return _heat_maps(
        maps,
        columns=min(len(variants), 3),
        rows_are=[READERS[reader] for reader in readers],
        columns_are=[str(count) for count in contexts.counts],
        title=f"Pass keys found in one of many contexts of {contexts.context_length} tokens\n"
        f"({summary.model}, trained at {summary.trained_length} tokens)",
        below="contexts",
        beside="",
        chosen=theme(dark=dark),
    )


def _heat_maps(
    maps: dict[str, list[list[float | None]]],
    *,
    columns: int,
    rows_are: Sequence[str],
    columns_are: Sequence[str],
    title: str,
    below: str,
    beside: str,
    chosen: Theme,
) -> bytes:
    """A heat map for each entry of `maps`, as PNG; None is a share that is not there."""
    rows = ceil(len(maps) / columns)
    width = max(1.5, CELL[0] * len(columns_are))
    height = max(1.0, CELL[1] * len(rows_are))
    # Long names of rows stand beside the first column only.
    beside_width = max(1.1, 0.6 + 0.065 * max(map(len, rows_are)))
    whole = max(NARROWEST, beside_width + columns * (width + 0.45))
    lines = [
        piece for line in title.splitlines() for piece in wrap(line, int(whole / CHARACTER) - 1)
    ]
    figure = Figure(
        figsize=(whole, 0.8 + LINE * len(lines) + rows * (height + 0.55)),
        facecolor=chosen.background,
        layout="constrained",
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colors = LinearSegmentedColormap.from_list("share", [chosen.none, chosen.all])
    for index, place in enumerate(grid.flat):
        if index >= len(maps):
            place.set_axis_off()
            continue
        name, shares = list(maps.items())[index]
        _heat_map(place, name, np.array(shares, dtype=float), rows_are, columns_are, colors, chosen)
        # Axes below an empty place would show no labels: put them on the last map of each column.
        place.tick_params(labelbottom=index + columns >= len(maps))
    figure.suptitle("\n".join(lines), color=chosen.text, fontsize=11, x=0.01, ha="left")
    figure.supxlabel(below, color=chosen.text, fontsize=9)
    if beside:
        figure.supylabel(beside, color=chosen.text, fontsize=9)
    return png(figure)


def _heat_map(
    axes: Axes,
    name: str,
    shares: np.ndarray,
    rows_are: Sequence[str],
    columns_are: Sequence[str],
    colors: LinearSegmentedColormap,
    chosen: Theme,
) -> None:
    axes.imshow(shares, cmap=colors, vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    axes.set_facecolor(chosen.background)
    axes.set_title(name, color=chosen.text, fontsize=9, loc="left", pad=3)
    axes.set_xticks(range(len(columns_are)), list(columns_are))
    axes.set_yticks(range(len(rows_are)), list(rows_are))
    axes.tick_params(colors=chosen.quiet, labelsize=7, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(-0.5, len(columns_are)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows_are)), minor=True)
    axes.grid(which="minor", color=chosen.background, linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    for (row, column), share in np.ndenumerate(shares):
        if isfinite(share):
            axes.text(
                column,
                row,
                f"{share:.0%}",
                ha="center",
                va="center",
                fontsize=6.5,
                color=chosen.background if share > 0.5 else chosen.text,
            )
