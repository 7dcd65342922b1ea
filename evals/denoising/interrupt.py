"""Ctrl-C while a step runs: the step is finished and kept before the program stops.

An interrupt in the middle of a step would leave weights, averages and the optimiser's state of two
different steps. So the first one is only noted; a second one ends the program at once, and what was
written until then stays whole, because files are replaced by renaming.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from types import FrameType


@dataclass
class Interrupt:
    """What came while it was put off.

    Attributes:
        came: whether there was an interrupt.
    """

    came: bool = False


@contextmanager
def put_off(*, wanted: bool = True) -> Iterator[Interrupt]:
    """Notes the first SIGINT within it, which is raised at its end; leave it when one came.

    Nothing is changed outside of the main thread, nor where SIGINT is handled by somebody else.

    Args:
        wanted: whether to do so at all.

    Raises:
        KeyboardInterrupt: SIGINT came: at the end, or at once when it came twice.
    """
    interrupt = Interrupt()

    def note(number: int, frame: FrameType | None) -> None:
        if interrupt.came:
            raise KeyboardInterrupt
        interrupt.came = True

    usual = signal.getsignal(signal.SIGINT)
    if (
        not wanted
        or current_thread() is not main_thread()
        or usual is not signal.default_int_handler
    ):
        yield interrupt
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, usual)
    if interrupt.came:
        raise KeyboardInterrupt
