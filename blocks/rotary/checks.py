"""Checks of the numbers that rules are made of, with errors that say what to write instead."""

import math


def require_positive(owner: str, **fields: float) -> None:
    """Raises unless every field is a finite number above 0.

    Raises:
        TypeError: a field is not a number.
        ValueError: a field is zero, negative, infinite or not a number (NaN).
    """
    for field, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{owner}.{field}: expected a number > 0, got {value!r}")
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
            raise TypeError(f"{owner}.{field}: expected an integer ≥ {minimum}, got {value!r}")
        if value < minimum:
            raise ValueError(f"{owner}.{field}: expected an integer ≥ {minimum}, got {value!r}")


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
