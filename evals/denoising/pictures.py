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
# Size of a picture on the page, and the pixels that it is magnified to at most.
INCHES = 0.69
MOST_PIXELS = 96
# Height of another line of a title.
LINE = 0.2
PAIRS = 10
# Bytes are [−1, 1] times this, moved up.
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


def nearest_picture(kept: dict[str, Tensor], *, run: str, dark: bool = False) -> bytes:
    """The samples that are nearest to a trained picture above those pictures, as PNG.

    Args:
        kept: what the run kept, see `results.write_samples`.
        run: what was trained and how it was sampled, below the title.
        dark: for a dark background.
    """
    sides = [kept[name].float() / HALF - 1.0 for name in ("samples", "trained")]
    distances, found = nearest(*map(features, sides))
    closest = np.argsort(distances, kind="stable")[:PAIRS]
    rows = [kept["samples"][closest], kept["trained"][found[closest]]]
    return _grid(
        rows,
        ["sample", "nearest trained"],
        title=f"The {len(closest)} samples that come nearest to a trained picture\n{run}",
        chosen=theme(dark=dark),
        below=[f"{distances[index]:.2f}" for index in closest],
    )


def loss_picture(losses: dict[str, Any], *, title: str, dark: bool = False) -> bytes:
    """Loss over steps, with a mean of its neighbours over it, as PNG.

    Args:
        losses: `every` and `values` of the run's file.
        title: above the curve.
        dark: for a dark background.
    """
    chosen = theme(dark=dark)
    figure, axes = new_figure(chosen, 9.6, 3.6)
    values = np.asarray(losses["values"])
    steps = losses["every"] * (np.arange(len(values)) + 1)
    axes.plot(steps, values, color=chosen.all, alpha=0.3, linewidth=0.7)
    window = max(1, len(values) // 30)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    middle = (window - 1) // 2
    axes.plot(steps[middle : middle + len(smooth)], smooth, color=chosen.all, linewidth=2)
    low, high = np.quantile(values, [0.0, 0.98])
    axes.set_ylim(low - 0.05 * (high - low) - 1e-6, high + 0.05 * (high - low) + 1e-6)
    axes.grid(axis="y", color=chosen.quiet, alpha=0.25, linewidth=0.6)
    axes.set_xlabel("step", color=chosen.text)
    axes.set_ylabel("loss", color=chosen.text)
    axes.set_title(title, color=chosen.text, fontsize=11, loc="left", pad=8)
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
    mosaic, cell = _mosaic(rows, columns, chosen)
    height, width = mosaic.shape[:2]
    across = max(4.0, INCHES * width / cell + 1.2)
    figure = Figure(
        figsize=(across, INCHES * height / cell + 0.75 + LINE * title.count("\n")),
        dpi=150,
        facecolor=chosen.background,
        layout="constrained",
    )
    axes = figure.subplots()
    axes.imshow(mosaic, interpolation="nearest" if cell <= MOST_PIXELS else "antialiased")
    middle = 0.5 * cell * (1.0 - GAP)
    axes.set_yticks([row * cell + middle for row in range(len(names))], names)
    axes.set_xticks([column * cell + middle for column in range(len(below))], below)
    axes.tick_params(length=0, colors=chosen.text, labelsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_title(title, color=chosen.text, fontsize=11, loc="left", pad=8)
    return png(figure)


def _mosaic(
    rows: Sequence[UInt8[Tensor, "columns channels height width"]], columns: int, chosen: Theme
) -> tuple[UInt8[np.ndarray, "height width 3"], int]:
    """All pictures in one, and how many pixels lie between the corners of neighbours."""
    height, width = rows[0].shape[2:]
    # Small pictures are magnified so that the gap between them is a whole number of pixels.
    zoom = max(1, MOST_PIXELS // max(height, width))
    gap = max(1, round(GAP * zoom * max(height, width)))
    cell = zoom * max(height, width) + gap
    background = tuple(int(chosen.background[at : at + 2], 16) for at in (1, 3, 5))
    mosaic = np.full((len(rows) * cell - gap, columns * cell - gap, 3), background, np.uint8)
    for top, row in enumerate(rows):
        for left, picture in enumerate(row.permute(0, 2, 3, 1).numpy()):
            pixels = picture.repeat(zoom, 0).repeat(zoom, 1)
            corner = top * cell, left * cell
            # A grey picture's one channel fills all three.
            mosaic[corner[0] : corner[0] + zoom * height, corner[1] : corner[1] + zoom * width] = (
                pixels
            )
    return mosaic, cell
