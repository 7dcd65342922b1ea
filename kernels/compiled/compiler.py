"""A decorator that makes machine code of a loop, at its first call for each dtype.

The code is kept beside the source or in the user's cache folder, so that the next process starts at
once. Where neither can be written it is compiled anew in each process; a disk that fills up
meanwhile costs the same.

Products and sums may be contracted to one rounding; nothing else is assumed of numbers, so that
infinities and NaN stay what they are. Functions that a loop calls are compiled into it and are not
looked at when its code is found on disk: whoever edits one deletes `__pycache__`.
"""

from collections.abc import Callable
from typing import Any

import numba

OPTIONS: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}}
PART: Any = OPTIONS | {"forceinline": True}
"""Of what loops call: a loop with a call in it does not become vector instructions."""


class Loop:
    """A compiled function of flat arrays and numbers, without the interpreter's lock."""

    options: dict[str, Any] = OPTIONS

    def __init__(self, function: Callable[..., None]) -> None:
        self.__doc__ = function.__doc__
        try:
            self._compiled = numba.njit(cache=True, nogil=True, **self.options)(function)
        except RuntimeError:  # no folder for the code can be written
            self._compiled = numba.njit(nogil=True, **self.options)(function)

    def __call__(self, *arguments: Any) -> None:
        """Runs it, compiling what is missing."""
        try:
            self._compiled(*arguments)
        except OSError:
            # Compiled, but not written; a loop itself never touches a file.
            self._compiled(*arguments)


class ReorderedLoop(Loop):
    """One whose sums may be taken in another order, as a dot product by vectors needs."""

    options = OPTIONS | {"fastmath": {"contract", "reassoc"}}


def inlined(function: Callable[..., Any]) -> Any:
    """A part of a loop, compiled into whatever calls it."""
    return numba.njit(**PART)(function)
