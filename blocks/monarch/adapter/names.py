"""What adapters may be called, and how several of them are named at once."""

import math
from collections.abc import Mapping, Sequence

from torch import nn

from ropewalk.blocks.checks import require_number

Active = str | Sequence[str] | Mapping[str, float]
"""One adapter, several, or several with the weights that multiply their scaling."""


def as_weights(names: Active) -> dict[str, float]:
    """The weight of each adapter, 1 where none is said.

    Raises:
        TypeError: neither names nor weights.
        ValueError: a weight that is not finite, or a name twice.
    """
    if isinstance(names, str):
        return {names: 1.0}
    if isinstance(names, Mapping):
        for name, weight in names.items():
            require_number("activate", "a finite number", **{str(name): weight})
            if not math.isfinite(weight):
                raise ValueError(f"activate: expected a finite weight, got {name!r}: {weight!r}")
        return {name: float(weight) for name, weight in names.items()}
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names: expected a name, several, or their weights, got {names!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"names: expected each once, got {list(names)}")
    return dict.fromkeys(names, 1.0)


def check_name(name: str) -> None:
    """Raises unless an adapter may be called so.

    Raises:
        ValueError: empty, with a dot, or a name that `nn.ModuleDict` uses.
        TypeError: not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name: expected a string, got {name!r}")
    if not name or "." in name or hasattr(nn.ModuleDict, name) or name == "training":
        raise ValueError(
            f"name: expected a word without dots that nn.ModuleDict does not use, got {name!r}"
        )
