"""Progress of counted steps: a bar with the time left on a terminal, elsewhere a line per tenth."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINES = 10


class StepProgress:
    """Shows how many of `total` steps are done.

    Args:
        console: where to show it; nowhere if None.
        what: is being done.
        total: all steps.
        done: steps that were done before.
    """

    def __init__(self, console: Console | None, what: str, total: int, done: int = 0) -> None:
        self.done = done
        self._console = console
        self._what = what
        self._total = total
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn(what, style="bold"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[remark]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total, completed=done, remark="")

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

    def show(self, done: int, remark: str) -> None:
        """Says how many steps are done.

        Args:
            done: all of them, not only the new ones.
            remark: stands beside the number.
        """
        before, self.done = self.done, done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, remark=remark)
        elif self._console is not None and done * LINES // self._total != (
            before * LINES // self._total
        ):
            line = f"{self._what} {done}/{self._total} {remark}".rstrip()
            self._console.print(line, highlight=False)
