"""What kind of thing a user passed to `rotary_attention`."""

from numbers import Integral

import torch
from torch import Tensor

# The protocols' members: compilers can trace hasattr, but not isinstance of a protocol.
ROTARY = ("rotary_dim", "layout", "inverse_frequencies", "attention_factor")
DISTANCE_RULE = ("branches", "edges", "unit")


def has(thing: object, members: tuple[str, ...]) -> bool:
    """Whether it is an instance with these members."""
    return not isinstance(thing, type) and all(hasattr(thing, member) for member in members)


def kind(thing: object) -> str:
    """What came instead; a class where an instance is meant is the likeliest slip."""
    if isinstance(thing, type):
        return f"the class {thing.__name__} itself; call it to make an instance"
    return type(thing).__name__


def is_integer(thing: object) -> bool:
    """Python's, numpy's, or a traced one; True is no number here."""
    return not isinstance(thing, bool) and isinstance(thing, (int, torch.SymInt, Integral))


def require_tensor(name: str, thing: object) -> None:
    """Raises unless it is a tensor.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(thing, Tensor):
        raise TypeError(f"{name} must be a tensor, got {kind(thing)}; torch.as_tensor makes one")
