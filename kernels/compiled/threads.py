"""Blocks of channels of sequences, dealt out to plain threads that live for one call.

Loops run without the interpreter's lock, so threads of Python are enough. There is no pool: nothing
is left behind that a forked process would wait for, and calls from several threads do not meet.
Which thread gets what depends on sizes alone, so that results repeat bit for bit.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

WORTH_A_THREAD = 5e5
"""Nanoseconds of work: starting a thread takes a tenth of that."""
LEAST_WIDTH = 32
"""Channels: whole cache lines, and a few vectors to work on at a time."""


@dataclass(frozen=True)
class Plan:
    """How the work of a call is cut.

    Attributes:
        width: channels of a block.
        bounds: (workers + 1,), the first task of each; task = sequence · blocks + block.
    """

    width: int
    bounds: tuple[int, ...]

    @property
    def workers(self) -> int:
        return len(self.bounds) - 1

    def run(self, work: Callable[[int, int, int], None]) -> None:
        """Calls work(worker, first task, end), the calling thread being one of the workers.

        What a thread was for that the system does not give is done by the caller.

        Raises:
            Exception: whatever one of them raised, when all of them have ended.
        """
        errors: list[BaseException] = []

        def guarded(worker: int) -> None:
            try:
                work(worker, *self.bounds[worker : worker + 2])
            except BaseException as error:  # the caller's thread raises it
                errors.append(error)

        threads = [
            threading.Thread(target=guarded, args=(worker,)) for worker in range(1, self.workers)
        ]
        started = 0
        for thread in threads:
            try:
                thread.start()
            except RuntimeError:  # too many of them, or the interpreter is ending
                break
            started += 1
        for worker in (0, *range(started + 1, self.workers)):
            guarded(worker)
        for thread in threads[:started]:
            thread.join()
        if errors:
            raise errors[0]


def plan(lengths: np.ndarray, channels: int, nanoseconds: float, most: int) -> Plan:
    """As many workers as torch has threads, but none with less to do than it is worth.

    Args:
        lengths: (sequences,), steps of each.
        channels: of each.
        nanoseconds: what a step of one channel takes, roughly.
        most: channels of a block, at the most.
    """
    work = float(lengths.sum()) * channels * nanoseconds
    wanted = max(1, min(torch.get_num_threads(), int(work / WORTH_A_THREAD)))
    pieces = -(-wanted // max(1, len(lengths)))
    width = -(-channels // pieces)
    width = min(most, -(-width // LEAST_WIDTH) * LEAST_WIDTH)
    blocks = -(-channels // width)
    done = np.cumsum(np.repeat(lengths, blocks))
    shares = np.arange(1, wanted) * (done[-1] if len(done) else 0) / wanted
    cuts = np.unique(np.searchsorted(done, shares, side="left") + 1) if wanted > 1 else []
    inner = [int(cut) for cut in cuts if 0 < cut < len(done)]
    return Plan(width, (0, *inner, len(done)))
