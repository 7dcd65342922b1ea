"""The picture of the loss over context length."""

from math import isfinite

from ropewalk.evals.report.canvas import new_figure, png
from ropewalk.evals.report.summary import Summary
from ropewalk.evals.report.theme import line_styles, theme

# Curves that leave the picture: losses above this multiple of the lowest are cut off, so that the
# differences between the good ones can be seen.
CUT_OFF = 1.6
# Confidence bands are drawn for few curves, and only where enough documents keep them narrow enough
# not to hide the curves; the page's table has every interval.
MOST_BANDS = 4
FEWEST_FOR_BANDS = 16


def perplexity_picture(summary: Summary, *, dark: bool = False) -> bytes:
    """Loss in bits per byte over context length, a curve per variant, as PNG.

    Args:
        summary: of a run with perplexity.
        dark: for a dark background.
    """
    chosen = theme(dark=dark)
    figure, axes = new_figure(chosen, 9.6, 5.6)
    styles = line_styles(summary.variants, summary.configuration["variants"], chosen)
    values = {
        key: loss.bits_per_byte.value
        for key, loss in summary.losses.items()
        if isfinite(loss.bits_per_byte.value)
    }
    lowest = min(values.values(), default=1.0)
    top = min(max(values.values(), default=2.0), lowest * CUT_OFF)
    # Where every variant starts from stays in the picture, however far apart they end.
    start = values.get((summary.variants[0], summary.lengths[0]), top)
    top = 1.03 * max(top, start)
    bottom = lowest - 0.04 * (top - lowest) - 1e-3
    ends: list[tuple[str, float]] = []
    documents = summary.planned["perplexity"]
    banded = len(summary.variants) <= MOST_BANDS and documents >= FEWEST_FOR_BANDS
    for variant in summary.variants:
        lengths = [length for length in summary.lengths if (variant, length) in values]
        if not lengths:
            continue
        style = styles[variant]
        curve = [values[variant, length] for length in lengths]
        axes.plot(
            lengths,
            curve,
            style.dashes,
            color=style.color,
            linewidth=style.width,
            marker="o",
            markersize=4,
            label=variant,
        )
        if banded:
            cells = [summary.losses[variant, length].bits_per_byte for length in lengths]
            axes.fill_between(
                lengths,
                [cell.low for cell in cells],
                [cell.high for cell in cells],
                color=style.color,
                alpha=0.12,
                linewidth=0,
            )
        ends.append((variant, curve[-1]))
    axes.set_xscale("log", base=2)
    axes.set_xticks(
        summary.lengths,
        [f"{n}\ntrained" if n == summary.trained_length else f"{n}" for n in summary.lengths],
    )
    axes.minorticks_off()
    axes.set_ylim(bottom, top)
    first, last = summary.lengths[0], summary.lengths[-1]
    axes.set_xlim(first / 1.08, last * (1.04 if last > first else 1.5))
    if first <= summary.trained_length <= last:
        axes.axvline(summary.trained_length, color=chosen.quiet, linewidth=1, linestyle=":")
    axes.grid(axis="y", color=chosen.quiet, alpha=0.25, linewidth=0.6)
    scored = summary.configuration["tasks"]["perplexity"]["score_tokens"]
    axes.set_xlabel("context length (tokens)", color=chosen.text)
    axes.set_ylabel("loss (bits per byte)", color=chosen.text)
    axes.set_title(
        f"Loss on the same last {scored} tokens as the context grows "
        f"(model: {summary.model}; documents: {documents})",
        color=chosen.text,
        fontsize=11,
        loc="left",
    )
    for variant, value, place in _spread_labels(ends, bottom, top):
        shown = f"{variant}  {value:.2f}" + (" ↑" if value > top else "")
        axes.annotate(
            shown,
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            color=styles[variant].color,
            fontsize=8.5,
            va="center",
            annotation_clip=False,
        )
    return png(figure)


def _spread_labels(
    ends: list[tuple[str, float]], bottom: float, top: float
) -> list[tuple[str, float, float]]:
    """Places of the curves' labels at the right edge, moved apart so that none overlap."""
    gap = (top - bottom) * 0.046
    placed: list[tuple[str, float, float]] = []
    lowest_free = bottom
    for variant, value in sorted(ends, key=lambda end: end[1]):
        place = max(min(value, top), lowest_free)
        placed.append((variant, value, place))
        lowest_free = place + gap
    # Whatever was pushed out at the top moves down again, pushing what is below it.
    highest_free = top
    for index in range(len(placed) - 1, -1, -1):
        variant, value, place = placed[index]
        place = min(place, highest_free)
        placed[index] = (variant, value, place)
        highest_free = place - gap
    return placed
