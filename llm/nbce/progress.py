"""A bar on a terminal for work that turns out to take longer than a few seconds."""

import sys
import time
from types import TracebackType
from typing import Any, Self

PATIENCE = 3.0


class Progress:
    """Shows how much of `total` is done, once it has taken a while; needs rich, else shows nothing.

    Args:
        title: what is being done.
        total: all work, in the units of `advance`.
    """

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._start = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, work: int) -> None:
        """Adds finished work."""
        self._done += work
        slow = time.monotonic() - self._start > PATIENCE
        if self._bar is None and slow and self._done < self._total and sys.stderr.isatty():
            self._bar = _bar()
            if self._bar is not None:
                self._task = self._bar.add_task(self._title, total=self._total)
                self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)


def _bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import Progress as RichProgress
    except ImportError:
        return None
    return RichProgress(console=Console(stderr=True), transient=True)
