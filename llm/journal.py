"""Attribute changes that can be undone: plugging is nothing but a journal of them.

Changes are kept as data and not as functions, so that a deep copy of a plugged model carries a
journal that undoes the changes of the *copy*.
"""

from typing import Any

# The attribute by which plugged models and their plugged parts are known.
MARK = "_ropewalk"
_MISSING = "ropewalk: there was no such attribute"


class Journal:
    """Sets attributes and remembers what was there."""

    def __init__(self) -> None:
        self._changes: list[tuple[Any, str, Any]] = []

    def set(self, target: Any, name: str, value: Any) -> None:
        """`setattr(target, name, value)`, remembered. Buffers and submodules of modules too."""
        self._changes.append((target, name, getattr(target, name, _MISSING)))
        setattr(target, name, value)

    def undo(self) -> None:
        """Puts everything back, last change first. Doing it again does nothing."""
        while self._changes:
            target, name, value = self._changes.pop()
            if isinstance(value, str) and value == _MISSING:
                delattr(target, name)
            else:
                setattr(target, name, value)
