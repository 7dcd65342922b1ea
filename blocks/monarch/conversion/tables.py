"""A table of strings as aligned text, as Markdown and as HTML."""

import html as escaping
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A heading, and whether the cells under it are numbers."""

    title: str
    right: bool = False


def text(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """Lines, the columns two spaces apart, a rule under the headings."""
    titles = [column.title for column in columns]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(_line(columns, widths, cells) for cells in (titles, rule, *rows))


def _line(columns: Sequence[Column], widths: Sequence[int], cells: Sequence[str]) -> str:
    padded = [
        cell.rjust(width) if column.right else cell.ljust(width)
        for column, width, cell in zip(columns, widths, cells, strict=True)
    ]
    return "  ".join(padded).rstrip()


def markdown(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---:" if column.right else "---" for column in columns]
    lines = [[column.title for column in columns], rule]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def html(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, caption: str) -> str:
    """An HTML table."""
    sides = ["right" if column.right else "left" for column in columns]

    def line(tag: str, cells: Sequence[str]) -> str:
        made = [
            f'<{tag} style="text-align: {side}">{escaping.escape(cell)}</{tag}>'
            for side, cell in zip(sides, cells, strict=True)
        ]
        return f"<tr>{''.join(made)}</tr>"

    head = line("th", [column.title for column in columns])
    body = "".join(line("td", row) for row in rows)
    return (
        f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
        f"<p>{escaping.escape(caption)}</p>"
    )
