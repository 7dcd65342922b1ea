"""The suites: one file each, with its cases and goals.

A new one is a module with `make(device, quick) -> Suite` and a line in `SUITES`.
"""

from collections.abc import Callable
from importlib import import_module

from benchmarks.case import Suite

SUITES = {
    "rotary_attention": "benchmarks.suites.rotary_attention",
    "rotary": "benchmarks.suites.rotary",
    "evaluation": "benchmarks.suites.evaluation",
}


def make_suite(name: str, device: str, *, quick: bool = False) -> Suite:
    """A suite for a device.

    Args:
        name: one of `SUITES`.
        device: "cpu" or "cuda".
        quick: sizes that take no time and show nothing but that everything runs.
    """
    make: Callable[[str, bool], Suite] = import_module(SUITES[name]).make
    return make(device, quick)
