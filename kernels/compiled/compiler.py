"""A decorator that makes machine code of a loop, at its first call for each dtype.

The code is kept beside the source or in the user's cache folder, so that the next process starts at
once. Where neither can be written it is compiled anew in each process; so it is if the disk is
full, or if what was kept cannot be read.

Products and sums may be contracted to one rounding; nothing else is assumed of numbers, so that
infinities and NaN stay what they are. Functions that a loop calls are compiled into it and are not
looked at when its code is found on disk: whoever edits one deletes `__pycache__`.
"""

import pickle
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
        self._function = function
        try:
            self._compiled = self._made(cache=True)
        except RuntimeError:  # no folder for the code can be written
            self._compiled = self._made(cache=False)

    def _made(self, *, cache: bool) -> Any:
        return numba.njit(cache=cache, nogil=True, **self.options)(self._function)

    def __call__(self, *arguments: Any) -> None:
        """Runs it, compiling what is missing."""
        try:
            self._compiled(*arguments)
        except (OSError, EOFError, pickle.UnpicklingError):
            # Of the file that code is kept in; a loop itself never touches one.
            self._compiled = self._made(cache=False)
            self._compiled(*arguments)


class ReorderedLoop(Loop):
    """One whose sums may be taken in another order, as a dot product by vectors needs."""

    options = OPTIONS | {"fastmath": {"contract", "reassoc"}}


def inlined(function: Callable[..., Any]) -> Any:
    """A part of a loop, compiled into whatever calls it."""
    return numba.njit(**PART)(function)
