"""Pictures of a run: samples by class, samples beside what is nearest to them, and the loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from ropewalk.evals.denoising.metrics import features, nearest
from ropewalk.evals.report.canvas import new_figure, png
from ropewalk.evals.report.theme import Theme, theme

COLUMNS = 12
MOST_ROWS = 20
# Rows of a grid without classes.
ROWS = 8
# Space between pictures, as a share of one.
GAP = 0.12
PAIRS = 10
# Largest differences between neighbours that look alike; of values in 0 … 255.
HALF = 127.5


def samples_picture(
    kept: dict[str, Tensor], classes: Sequence[str], *, title: str, dark: bool = False
) -> bytes:
    """A row of samples for each class, or rows of samples without classes, as PNG.

    Args:
        kept: what the run kept, see `results.write_samples`.
        classes: their names; at most the first 20 are shown.
        title: above the grid.
        dark: for a dark background.
    """
    samples = kept["samples"]
    if "labels" in kept:
        names = list(classes[:MOST_ROWS])
        rows = [samples[kept["labels"] == number][:COLUMNS] for number in range(len(names))]
    else:
        names = []
        rows = list(samples[: ROWS * COLUMNS].split(COLUMNS))
    return _grid(rows, names, title=title, chosen=theme(dark=dark))


def nearest_picture(kept: dict[str, Tensor], *, dark: bool = False) -> bytes:
    """The samples that are nearest to a trained picture above those pictures, as PNG.

    Args:
        kept: what the run kept, see `results.write_samples`.
        dark: for a dark background.
    """
    sides = [kept[name].float() / HALF - 1.0 for name in ("samples", "trained")]
    distances, found = nearest(*map(features, sides))
    closest = np.argsort(distances, kind="stable")[:PAIRS]
    rows = [kept["samples"][closest], kept["trained"][found[closest]]]
    return _grid(
        rows,
        ["sample", "nearest trained"],
        title=f"The {len(closest)} samples that come nearest to a trained picture",
        chosen=theme(dark=dark),
        below=[f"{distances[index]:.2f}" for index in closest],
    )


def loss_picture(losses: dict[str, Any], *, dark: bool = False) -> bytes:
    """Loss over steps, with a mean of its neighbours over it, as PNG.

    Args:
        losses: `every` and `values` of the run's file.
        dark: for a dark background.
    """
    chosen = theme(dark=dark)
    figure, axes = new_figure(chosen, 9.6, 3.6)
    values = np.asarray(losses["values"])
    steps = losses["every"] * (np.arange(len(values)) + 1)
    axes.plot(steps, values, color=chosen.all, alpha=0.3, linewidth=0.7)
    window = max(1, len(values) // 30)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color=chosen.all, linewidth=2)
    low, high = np.quantile(values, [0.0, 0.98])
    axes.set_ylim(low - 0.05 * (high - low) - 1e-6, high + 0.05 * (high - low) + 1e-6)
    axes.grid(axis="y", color=chosen.quiet, alpha=0.25, linewidth=0.6)
    axes.set_xlabel("step", color=chosen.text)
    axes.set_ylabel("loss", color=chosen.text)
    return png(figure)


def _grid(
    rows: Sequence[UInt8[Tensor, "columns channels height width"]],
    names: Sequence[str],
    *,
    title: str,
    chosen: Theme,
    below: Sequence[str] = (),
) -> bytes:
    """Rows of pictures with their names on the left."""
    columns = max(len(row) for row in rows)
    cell = 0.62
    width = max(4.0, cell * columns * (1.0 + GAP) + 1.2)
    figure = Figure(
        figsize=(width, cell * len(rows) * (1.0 + GAP) + 0.75),
        facecolor=chosen.background,
        layout="constrained",
    )
    axes = figure.subplots()
    axes.set_facecolor(chosen.background)
    grey = rows[0].shape[1] == 1
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            pixels = picture.permute(1, 2, 0).numpy()
            axes.imshow(
                pixels[..., 0] if grey else pixels,
                cmap="gray",
                vmin=0,
                vmax=255,
                interpolation="nearest" if pixels.shape[0] <= 64 else "antialiased",
                extent=(left, left + 1.0 - GAP, top + 1.0 - GAP, top),
            )
    axes.set_xlim(-0.05, columns - GAP + 0.05)
    axes.set_ylim(len(rows) - GAP + 0.05, -0.05)
    axes.set_aspect("equal")
    middle = 0.5 * (1.0 - GAP)
    axes.set_yticks([row + middle for row in range(len(names))], names)
    axes.set_xticks([column + middle for column in range(len(below))], below)
    axes.tick_params(length=0, colors=chosen.text, labelsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, color=chosen.text, fontsize=11, loc="left")
    return png(figure)
