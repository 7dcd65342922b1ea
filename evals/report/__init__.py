"""Reports of a run: tables, pictures and a page, all drawn from its file alone."""

from pathlib import Path

from ropewalk.evals.errors import InputError, one_line
from ropewalk.evals.report.conclusion import conclusion
from ropewalk.evals.report.summary import Summary, summarise
from ropewalk.evals.report.table import terminal_settings, terminal_tables
from ropewalk.evals.run_file import read_run
from ropewalk.evals.run_folder import NAME

__all__ = [
    "Summary",
    "conclusion",
    "summarise",
    "terminal_settings",
    "terminal_tables",
    "write_report",
]
# What reading a file of another shape than a run's raises.
MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError)


def write_report(folder: Path) -> tuple[Summary, list[Path]]:
    """Draws the pictures and the page of the run in `folder`.

    Returns:
        The run's summary, and the files that were written.

    Raises:
        InputError: there is no run in `folder`, or it cannot be written to.
    """
    from ropewalk.evals.report.loss_picture import perplexity_picture
    from ropewalk.evals.report.page import page
    from ropewalk.evals.report.share_pictures import contexts_picture, retrieval_picture

    content = read_run(folder)
    try:
        summary = summarise(content)
    except MALFORMED as error:
        raise InputError(
            f"{str(folder / NAME)!r} is damaged: {type(error).__name__} {one_line(error)}"
        ) from error
    written = []
    pictures: dict[str, tuple[bytes, bytes]] = {}
    if summary.losses:
        pictures["perplexity"] = perplexity_picture(summary), perplexity_picture(summary, dark=True)
    if summary.retrieval:
        pictures["passkey"] = retrieval_picture(summary), retrieval_picture(summary, dark=True)
    if summary.contexts is not None and summary.contexts.rows:
        pictures["nbce"] = contexts_picture(summary), contexts_picture(summary, dark=True)
    try:
        for name, (light, _) in pictures.items():
            path = folder / f"{name}.png"
            path.write_bytes(light)
            written.append(path)
        path = folder / "report.html"
        path.write_text(page(summary, pictures), encoding="utf-8")
        written.append(path)
    except OSError as error:
        raise InputError(f"report in {str(folder)!r} cannot be written: {error.strerror}") from None
    return summary, written
