"""Time of calls that take turns.

All calls of a case run in rounds, one run each, and every round begins with another of them. What
disturbs the machine for a second then disturbs all of them, so that ratios stay honest where
absolute times do not. Medians are compared; least and greatest show the noise.

On a GPU a run lies between two device events. Before it the cache is overwritten, so that a small
input is read from memory as it would be in a model, and the device sleeps a moment, so that the
host has queued the whole call before it begins: what is timed is the device, unless the call
itself waits for it. The host's own time is kept beside it.
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch

CACHE_BYTES = 2**28  # more than any L2
SLEEP_CYCLES = 1_000_000  # about half a millisecond


class Sample(NamedTuple):
    """One run: seconds on the device, and seconds that the host spent."""

    seconds: float
    host: float


class Timing(NamedTuple):
    """Milliseconds of one peer's runs.

    Attributes:
        median_ms, min_ms, max_ms: over the runs.
        host_ms: median of what the host spent: on a GPU until the call returned, on a CPU the
            processor time of all threads.
        runs: how many were timed.
    """

    median_ms: float
    min_ms: float
    max_ms: float
    host_ms: float
    runs: int


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    device: str,
    *,
    seconds: float,
    least: int = 5,
    most: int = 50,
) -> dict[str, Timing]:
    """Times calls in turn.

    Args:
        calls: what to run, by name; each has run once already, so that nothing is compiled here.
            On a CPU, one that returns a `Sample` ran elsewhere, and that is its time.
        device: "cpu" or "cuda".
        seconds: for all rounds together, as far as `least` allows.
        least: rounds at least.
        most: rounds at most.

    Returns:
        The timing of each call; one warm-up round is not counted.
    """
    if not calls:
        return {}
    run = _Cuda() if device == "cuda" else _processor
    began = time.perf_counter()
    for call in calls.values():
        run(call)
    round_seconds = time.perf_counter() - began
    rounds = max(least, min(most, int(seconds / max(round_seconds, 1e-9))))
    names = list(calls)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(run(calls[name]))
    return {name: _summary(values) for name, values in samples.items()}


def _summary(samples: list[Sample]) -> Timing:
    times = [1000 * sample.seconds for sample in samples]
    host = median(1000 * sample.host for sample in samples)
    return Timing(median(times), min(times), max(times), host, len(times))


def _processor(call: Callable[[], object]) -> Sample:
    used, began = time.process_time(), time.perf_counter()
    result = call()
    if isinstance(result, Sample):  # it ran in another process, which measured it
        return result
    return Sample(time.perf_counter() - began, time.process_time() - used)


class _Cuda:
    """Times one call on the current CUDA device."""

    def __init__(self) -> None:
        self.cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")
        self.start = torch.cuda.Event(enable_timing=True)
        self.stop = torch.cuda.Event(enable_timing=True)

    def __call__(self, call: Callable[[], object]) -> Sample:
        self.cache.zero_()
        torch.cuda._sleep(SLEEP_CYCLES)
        self.start.record()
        began = time.perf_counter()
        call()
        host = time.perf_counter() - began
        self.stop.record()
        torch.cuda.synchronize()
        return Sample(self.start.elapsed_time(self.stop) / 1000, host)
