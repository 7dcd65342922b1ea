"""Checks of the numbers that blocks are made of, with errors that say what to write instead."""

import math
from numbers import Integral, Real

from torch import Tensor


def require_number(owner: str, expected: str = "a number", **fields: float) -> None:
    """Raises unless every field is an `int` or a `float`.

    Scalars of numpy are refused: rules are written into JSON, compared and traced as they are.

    Raises:
        TypeError: a field is not a number.
    """
    for field, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{owner}.{field}: expected {expected}, got {value!r}{mend(value)}")


def mend(value: object, kind: str = "float") -> str:
    """How to make a plain number of a foreign scalar, of the kind that is wanted."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, Integral):
        return "; convert it with int(…)"
    if isinstance(value, Real) or (isinstance(value, Tensor) and value.ndim == 0):
        return f"; convert it with {kind}(…)"
    return ""


def require_positive(owner: str, **fields: float) -> None:
    """Raises unless every field is a finite number above 0.

    Raises:
        TypeError: a field is not a number.
        ValueError: a field is zero, negative, infinite or not a number (NaN).
    """
    require_number(owner, "a number > 0", **fields)
    for field, value in fields.items():
        # Comparisons, not math.isfinite: they can be traced, and NaN fails them too.
        if not 0 < value < math.inf:
            raise ValueError(f"{owner}.{field}: expected a finite number > 0, got {value!r}")


def require_integer(owner: str, minimum: int, **fields: int) -> None:
    """Raises unless every field is an integer of at least `minimum`.

    Raises:
        TypeError: a field is not an integer.
        ValueError: a field is below `minimum`.
    """
    for field, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(
                f"{owner}.{field}: expected an integer ≥ {minimum}, "
                f"got {value!r}{mend(value, 'int')}"
            )
        if value < minimum:
            raise ValueError(f"{owner}.{field}: expected an integer ≥ {minimum}, got {value!r}")
