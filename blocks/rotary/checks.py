"""Checks of the numbers that rules are made of, with errors that say what to write instead."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor


def require_number(owner: str, expected: str = "a number", **fields: float) -> None:
    """Raises unless every field is an `int` or a `float`.

    Scalars of numpy are refused: rules are written into JSON, compared and traced as they are.

    Raises:
        TypeError: a field is not a number.
    """
    for field, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{owner}.{field}: expected {expected}, got {value!r}{_mend(value)}")


def _mend(value: object, kind: str = "float") -> str:
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
                f"got {value!r}{_mend(value, 'int')}"
            )
        if value < minimum:
            raise ValueError(f"{owner}.{field}: expected an integer ≥ {minimum}, got {value!r}")


def require_length(length: int | Tensor | None) -> None:
    """Raises unless `length` is None, an integer of at least 1 or a 0-d tensor of integers.

    A tensor's value is never looked at, because it may be traced.

    Raises:
        TypeError: it is not an integer, or a tensor of anything but integers.
        ValueError: it is below 1, or a tensor of several numbers.
    """
    if isinstance(length, Tensor):
        if length.ndim != 0:
            raise ValueError(
                f"length: expected one number, a 0-d tensor, got shape {tuple(length.shape)}"
            )
        if length.dtype == torch.bool or length.is_complex():
            raise TypeError(f"length: expected a tensor of one integer, got {length.dtype}")
    # A size of a traced tensor is a SymInt, positive by construction.
    elif length is not None and not isinstance(length, torch.SymInt):
        if isinstance(length, bool) or not isinstance(length, int):
            raise TypeError(
                "length: expected the tokens in the context, an integer ≥ 1 or a 0-d tensor, "
                f"got {length!r}{_mend(length, 'int')}"
            )
        if length < 1:
            raise ValueError(f"length: expected an integer ≥ 1, got {length!r}")


def require_base(base: float) -> None:
    """Raises unless `base` (`rope_theta`) is a finite number above 1.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not above 1, so that frequencies would not fall.
    """
    require_positive("rotary", base=base)
    if base <= 1:
        raise ValueError(f"rotary.base: expected a number > 1, such as 10000.0, got {base!r}")


def require_rotary_dim(rotary_dim: int, minimum: int = 2) -> None:
    """Raises unless `rotary_dim` is an even integer of at least `minimum`.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is odd or too small.
    """
    if isinstance(rotary_dim, bool) or not isinstance(rotary_dim, int):
        raise TypeError(f"rotary_dim: expected an even integer, got {rotary_dim!r}")
    if rotary_dim < minimum or rotary_dim % 2:
        raise ValueError(
            f"rotary_dim: expected an even integer ≥ {minimum} because dimensions are rotated in "
            f"pairs, got {rotary_dim}; choose head_dim and rotary_fraction so that their product "
            "is even"
        )
