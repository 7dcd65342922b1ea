"""The report of a denoiser: a table for the terminal, pictures and a page, from the run's files."""

from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table

from ropewalk.evals.denoising import results
from ropewalk.evals.denoising.metrics import FEW, GATE
from ropewalk.evals.errors import InputError, one_line
from ropewalk.evals.report.html import details, document, picture, section, table

MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)
CAPTIONS = {
    "samples": "Samples drawn with the averaged weights, a row for each class that was asked for.",
    "nearest": "The samples nearest to a picture that was trained on, and that picture below each "
    "of them, with their distance. Pairs that look the same would be copies.",
    "loss": "Loss of every step (pale) and its mean over neighbouring steps.",
}


class Figure(NamedTuple):
    """A row of the table.

    Attributes:
        key: in the run's file.
        name: as shown.
        places: digits after the point.
        sense: where good figures lie.
    """

    key: str
    name: str
    places: int
    sense: str


FIGURES = (
    Figure("accuracy", "SVC accuracy on samples", 3, "as real or higher"),
    Figure("frechet", "Fréchet distance to unseen pictures", 3, "low, real is the floor"),
    Figure("train_on_synthetic", "accuracy of an SVC trained on samples", 3, "as real"),
    Figure("nearest", "distance to the nearest trained picture", 2, "as real, not much less"),
    Figure("near_copies", "share of near copies of trained pictures", 3, "as real"),
)


def rows(content: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """(figure, of samples, of real pictures, what is good) of every figure that was measured."""
    measured = content["measured"]
    return [
        (
            figure.name,
            f"{measured[figure.key]:.{figure.places}f}{_gate(content, figure.key)}",
            f"{measured['real'][figure.key]:.{figure.places}f}",
            figure.sense,
        )
        for figure in FIGURES
        if figure.key in measured
    ]


def terminal_table(content: dict[str, Any]) -> Table:
    """The figures, short."""
    drawn = Table(box=box.SIMPLE, pad_edge=False)
    drawn.add_column("", no_wrap=True)
    drawn.add_column("samples", justify="right")
    drawn.add_column("real", justify="right")
    drawn.add_column("good is", style="dim")
    for row in rows(content):
        drawn.add_row(*row)
    return drawn


def title(content: dict[str, Any]) -> str:
    """What was trained, in a line."""
    recipe, data = content["configuration"]["recipe"], content["configuration"]["data"]
    return (
        f"{data['name']}: {recipe['process']}, {recipe['schedule']}, {recipe['mixer']}, "
        f"{recipe['feed_forward']}, "
        f"{content['parameters'] / 1e6:.2f}M parameters"
    )


def sampled(content: dict[str, Any]) -> str:
    """How the samples were drawn, in a line."""
    sampling = content["sampling"]
    return f"{sampling['solver']}, {sampling['steps']} steps, guidance {sampling['guidance']:g}"


def conclusion(content: dict[str, Any]) -> str:
    """What the figures say, in words."""
    measured, sampling = content["measured"], content["sampling"]
    said = [
        f"{measured['samples']} samples at guidance s = {sampling['guidance']:g} "
        f"(w = {sampling['guidance'] - 1:g} of ClassifierFree) lie "
        f"{measured['frechet']:.3f} from unseen pictures, real ones "
        f"{measured['real']['frechet']:.3f}"
    ]
    if "accuracy" in measured:
        said.append(
            f"a classifier of real pictures finds the class asked for in "
            f"{measured['accuracy']:.1%} of them, and one that was trained on samples alone is "
            f"right about {measured['train_on_synthetic']:.1%} of unseen pictures"
        )
    said.append(
        f"{measured['near_copies']:.1%} are near copies of trained pictures "
        f"(of unseen ones {measured['real']['near_copies']:.1%})"
    )
    text = "; ".join(said) + "."
    if measured["unseen"] < FEW:
        text += f" With {measured['unseen']} unseen pictures these figures mean little."
    if content["gate"] is not None:
        wanted = ", ".join(
            f"{figure.name} {_bound(figure.key)}" for figure in FIGURES if figure.key in GATE
        )
        passed = "passed" if content["gate"] else "not passed"
        text += f" The gate of the digits ({wanted}) is {passed}."
    return text


def write_report(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """Draws pictures and page of a run.

    Returns:
        The run's content, and the files that were written.

    Raises:
        InputError: there is no complete run in `folder`, or it cannot be written to.
    """
    from ropewalk.evals.denoising.pictures import loss_picture, nearest_picture, samples_picture

    content = results.read(folder)
    if not content["complete"]:
        raise InputError(
            f"{str(folder)!r} holds a denoiser that is not trained and measured yet; "
            "the command that began it continues it"
        )
    kept = results.read_samples(folder)
    try:
        classes = content["configuration"]["data"]["classes"]
        run = f"{title(content)}\n{sampled(content)}"
        drawn = {
            "samples": _both(partial(samples_picture, kept, classes, title=run)),
            "nearest": _both(partial(nearest_picture, kept, run=run)),
            "loss": _both(partial(loss_picture, content["losses"], title=title(content))),
        }
        html = _page(content, drawn)
    except MALFORMED as error:
        raise InputError(
            f"{str(folder / results.NAME)!r} is damaged: {type(error).__name__} {one_line(error)}"
        ) from error
    written = []
    try:
        for name, (light, _) in drawn.items():
            written.append(folder / f"{name}.png")
            written[-1].write_bytes(light)
        written.append(folder / "report.html")
        written[-1].write_text(html, encoding="utf-8")
    except OSError as error:
        raise InputError(f"report in {str(folder)!r} cannot be written: {error.strerror}") from None
    return content, written


def _both(draw: Callable[..., bytes]) -> tuple[bytes, bytes]:
    """A picture in its light and its dark form."""
    return draw(dark=False), draw(dark=True)


def _page(content: dict[str, Any], drawn: dict[str, tuple[bytes, bytes]]) -> str:
    shown = {name: picture(*sides, CAPTIONS[name]) for name, sides in drawn.items()}
    cells = [
        [f"<td>{escape(row[0])}</td>", *(f"<td>{escape(cell)}</td>" for cell in row[1:])]
        for row in rows(content)
    ]
    loss = content["loss"]
    caption = (
        "Figures of the samples, and of real pictures in their place: trained ones, or unseen ones "
        f"for the last two. Loss of the averaged weights: {loss['trained']:.4f} on trained "
        f"pictures, {loss['unseen']:.4f} on unseen ones."
    )
    figures = table(caption, ["", "samples", "real", "good is"], cells)
    run = "".join(
        details(name, content[key])
        for name, key in (
            ("Configuration", "configuration"),
            ("Sampling", "sampling"),
            ("Sessions, software and hardware", "sessions"),
        )
    )
    return document(
        title=title(content),
        subtitle=_subtitle(content),
        conclusion=conclusion(content),
        sections=[
            section("Samples", shown["samples"]),
            section("Figures", figures),
            section("Copies?", shown["nearest"]),
            section("Training", shown["loss"]),
            section("Run", run),
        ],
        source=results.NAME,
    )


def _subtitle(content: dict[str, Any]) -> str:
    recipe = content["configuration"]["recipe"]
    minutes = sum(session["seconds"] for session in content["sessions"]) / 60
    return (
        f"{recipe['steps']} steps of {recipe['batch_size']} pictures in {minutes:.1f} minutes · "
        f"{sampled(content)} · "
        f"{content['sessions'][0]['started'][:10]}"
    )


def _gate(content: dict[str, Any], key: str) -> str:
    """What the digits must reach, behind what they did."""
    if content["gate"] is None or key not in GATE:
        return ""
    return f" ({_bound(key)})"


def _bound(key: str) -> str:
    return f"{'≤' if key == 'frechet' else '≥'} {GATE[key]:g}"
