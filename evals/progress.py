"""Progress of a run: a bar with the time left on a terminal, a line per step elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class WorkProgress:
    """Shows how much of `total` work is done.

    Args:
        console: where to show it; nowhere if None.
        total: all work, in the units of `advance`.
    """

    def __init__(self, console: Console | None, total: float) -> None:
        self._console = console
        self._total = total
        self._done = 0.0
        self._last = ""
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", style="bold"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                speed_estimate_period=120.0,
            )
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def describe(self, variant: str, task: str, length: int) -> None:
        """Says what is being worked on."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{variant}  {task}  {length}")
        elif self._console is not None and f"{variant}/{task}" != self._last:
            self._last = f"{variant}/{task}"
            self._console.print(
                f"{self._done / self._total:4.0%}  {variant}  {task}", highlight=False
            )

    def advance(self, work: float) -> None:
        """Adds finished work."""
        self._done += work
        if self._bar is not None:
            self._bar.update(self._task, advance=work)
