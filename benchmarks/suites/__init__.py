"""The suites: one file each, with its cases and goals.

A new one is a module with `make(device, quick) -> Suite` and a line in `SUITES`; what else its
`make` takes, by name and with a default, `make_suite` hands over.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.case import Suite

SUITES = {
    "rotary_attention": "benchmarks.suites.rotary_attention",
    "rotary": "benchmarks.suites.rotary",
    "linear_cross_entropy": "benchmarks.suites.linear_cross_entropy",
    "context_merge": "benchmarks.suites.context_merge",
    "nbce": "benchmarks.suites.nbce",
    "monarch": "benchmarks.suites.monarch",
    "recurrent": "benchmarks.suites.recurrent",
    "denoiser": "benchmarks.suites.denoiser",
    "evaluation": "benchmarks.suites.evaluation",
}


def make_suite(name: str, device: str, *, quick: bool = False, **options: Any) -> Suite:
    """A suite for a device.

    Args:
        name: one of `SUITES`.
        device: "cpu" or "cuda".
        quick: sizes that take no time and show nothing but that everything runs.
        options: of that suite alone.
    """
    make: Callable[..., Suite] = import_module(SUITES[name]).make
    return make(device, quick, **options)
