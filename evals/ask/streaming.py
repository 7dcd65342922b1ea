"""The answer in the terminal while it is written; it gives way to the one with its sources."""

import unicodedata
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

# Marks that change the direction of what follows them.
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class LiveAnswer(BaseStreamer):
    """Shows the tokens that it gets, and nothing any more when it is left.

    Args:
        tokenizer: decodes them.
        console: a terminal.
    """

    def __init__(self, tokenizer: Any, console: Console) -> None:
        self._tokenizer = tokenizer
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._tokens: list[int] = []
        self._prompt_is_next = True

    def __enter__(self) -> Self:
        self._live.start()
        self._live.update(Text("reading …", style="dim"), refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def put(self, value: Tensor) -> None:
        """The prompt at first, then token by token."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._tokens += value.flatten().tolist()
        written = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        self._live.update(Text(printable(written)), refresh=True)

    def end(self) -> None:
        """Nothing to do: what is shown stays until this is left."""


def printable(text: str) -> str:
    """The text without characters that would command the terminal or turn the text around."""
    return "".join("\ufffd" if _commands(character) else character for character in text)


def _commands(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs") or character in TURNING
