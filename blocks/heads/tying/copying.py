"""Copying modules that belong to a model: with it, or alone.

A deep copy follows every reference, and the ends of a tied model refer to each other and, for its
loss, to the model. Copied alone, as adapters do, they would take all of it along.
"""

import copy
import weakref
from typing import Any

from torch import nn


class WeakModule:
    """A module that is referred to without being kept alive. It is copied with its copy."""

    def __init__(self, module: nn.Module | None) -> None:
        self._reference = None if module is None else weakref.ref(module)

    def __call__(self) -> nn.Module | None:
        return None if self._reference is None else self._reference()

    def __reduce__(self) -> tuple[Any, ...]:
        return WeakModule, (None,), self()

    def __setstate__(self, module: nn.Module) -> None:
        self._reference = weakref.ref(module)


def copied(module: Any, state: dict[str, Any], memo: dict[int, Any]) -> Any:
    """As `copy.deepcopy` copies what has no `__deepcopy__`, with this state."""
    kind: Any = type(module)
    new = kind.__new__(kind)
    memo[id(module)] = new
    new.__setstate__(copy.deepcopy(state, memo))
    return new
