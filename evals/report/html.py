"""Pieces of a report's page: one HTML file that holds everything and needs no network."""

import json
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any


def document(
    *, title: str, subtitle: str, conclusion: str, sections: Sequence[str], source: str
) -> str:
    """The page.

    Args:
        title: plain text, as the next two are.
        subtitle: under the title.
        conclusion: what the figures say, in words.
        sections: HTML.
        source: name of the file that it is drawn from.
    """
    template = Template(
        files("ropewalk.evals").joinpath("templates/report.html").read_text(encoding="utf-8")
    )
    return template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        conclusion=escape(conclusion),
        sections="\n".join(sections),
        source=escape(source),
    )


def section(title: str, body: str) -> str:
    """A heading and the HTML under it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def picture(light: bytes, dark: bytes, caption: str) -> str:
    """A PNG in its light and its dark form, inside the page."""
    bright, dim = (f"data:image/png;base64,{b64encode(image).decode()}" for image in (light, dark))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dim}">'
        f'<img alt="{escape(caption)}" src="{bright}"></picture>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table from cells that are HTML already, `<td …>` included."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
    )


def details(name: str, value: Any) -> str:
    """JSON that opens at a click."""
    shown = escape(json.dumps(value, indent=2, ensure_ascii=False))
    return f"<details><summary>{escape(name)}</summary><pre>{shown}</pre></details>\n"
