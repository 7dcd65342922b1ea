"""What all pictures share: axes in the chosen colours, and the bytes of a PNG."""

from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ropewalk.evals.report.theme import Theme


def new_figure(chosen: Theme, width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, `width` × `height` inches."""
    figure = Figure(figsize=(width, height), facecolor=chosen.background, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor(chosen.background)
    axes.tick_params(colors=chosen.text, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(chosen.quiet)
    return figure, axes


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes for the same data."""
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
