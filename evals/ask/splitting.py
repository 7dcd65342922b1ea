"""Files that are longer than the model reads, split into as many contexts as needed.

Parts end at a line break, where a line is too long for one at a space, and in the middle of a word
only where that is too long. Together they are the text.
"""

import re
from collections.abc import Callable

from ropewalk.evals.errors import InputError

ENDS = (re.compile(r"\n"), re.compile(r"\s"), re.compile(r".", re.DOTALL))


def split_texts(
    texts: dict[str, str], room: int, tokens: Callable[[str], int]
) -> dict[str, tuple[str, str]]:
    """Parts of at most `room` tokens.

    Args:
        texts: name → text.
        room: tokens of a part at most.
        tokens: how many a text has.

    Returns:
        Name of the part → name of its text, and the part; `name [1/3]` where there are several.

    Raises:
        InputError: not even a character fits, or two parts would be called alike.
    """
    parts: dict[str, tuple[str, str]] = {}
    for name, text in texts.items():
        pieces = [piece for piece in _pieces(text, room, tokens) if piece.strip()]
        for number, piece in enumerate(pieces, 1):
            part = f"{name} [{number}/{len(pieces)}]" if len(pieces) > 1 else name
            if part in parts:
                raise InputError(f"a part of a context and another are both called {part!r}")
            parts[part] = (name, piece)
    return parts


def _pieces(text: str, room: int, tokens: Callable[[str], int]) -> list[str]:
    pieces = []
    start = 0
    while start < len(text):
        # Only as much is looked at as a part can need.
        width = max(room, 1)
        while start + width < len(text) and tokens(text[start : start + width]) <= room:
            width *= 2
        window = text[start : start + width]
        end = len(window) if tokens(window) <= room else _longest(window, room, tokens)
        pieces.append(window[:end])
        start += end
    return pieces


def _longest(text: str, room: int, tokens: Callable[[str], int]) -> int:
    """Where the longest beginning that fits ends."""
    for pattern in ENDS:
        ends = [found.end() for found in pattern.finditer(text)]
        fits, fails = 0, len(ends) + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            if tokens(text[: ends[middle - 1]]) <= room:
                fits = middle
            else:
                fails = middle
        if fits:
            return ends[fits - 1]
    raise InputError(
        "--split: prefix, separator, question and --max-new-tokens leave no room for a context in "
        "what the model reads; make them shorter"
    )
