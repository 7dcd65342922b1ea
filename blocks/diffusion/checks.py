"""Times, shapes and tokens: what processes check before they compute, and how times become rows.

Values are read only where that costs nothing: on a CPU, outside compilers, transforms and fakes.
Elsewhere shapes and dtypes are still checked.
"""

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from ropewalk.kernels.plain import is_plain, is_transformed

Time = Tensor | float
"""A time in [0, 1]: a number, a 0-d tensor for the whole batch, or one per sample."""


def described(value: object) -> str:
    """A value as an error names it: in a few words, whatever it holds."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple | dict | set):
        return f"{type(value).__name__} of {len(value)}"
    if value is None or isinstance(value, str | bool | int | float | complex):
        return repr(value)
    return type(value).__name__


def readable(x: Tensor) -> bool:
    """Whether the values of x can be read here without waiting for a device or breaking a graph."""
    return is_plain(x) and x.device.type == "cpu" and not is_transformed() and x.numel() > 0


def wide(*tensors: Tensor) -> torch.dtype:
    """The dtype that these are computed in: the widest of theirs, float32 at least."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def as_time(t: Time, name: str = "t") -> Float[Tensor, " *times"]:
    """A time as a tensor of float32 or float64, checked to lie in [0, 1]; a number becomes float64.

    Raises:
        TypeError: t is neither a number nor a floating-point tensor.
        ValueError: a time lies outside [0, 1] or is NaN.
    """
    if not isinstance(t, Tensor):
        if isinstance(t, bool) or not isinstance(t, int | float):
            raise TypeError(
                f"{name}: expected a number or a floating-point tensor, got {described(t)}"
            )
        if not 0 <= t <= 1:
            raise ValueError(f"{name}: expected a time in [0, 1], 0 data and 1 noise, got {t!r}")
        return torch.tensor(float(t), dtype=torch.float64)
    if not t.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating-point tensor of times in [0, 1], got {t.dtype}; an index "
            "k of T steps is the time (k + 1) / T"
        )
    if readable(t) and not bool(((t >= 0) & (t <= 1)).all()):
        low, high = float(t.detach().min()), float(t.detach().max())
        raise ValueError(
            f"{name}: expected times in [0, 1], 0 data and 1 noise, got values from {low:g} to "
            f"{high:g}"
        )
    return t.to(wide(t))


def per_sample(values: Time, x: Num[Tensor, "batch ..."], name: str) -> Tensor:
    """One value for all of x or one per sample, shaped to multiply x.

    A 0-d tensor stays where it is: one on a CPU goes with x on any device, and costs no transfer.

    Raises:
        ValueError: it is neither 0-d nor of shape (batch,).
    """
    if not isinstance(values, Tensor):
        return torch.tensor(float(values), dtype=torch.float64)
    if values.ndim == 0:
        return values
    if values.ndim != 1 or values.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name}: expected a 0-d tensor or one value per sample, ({x.shape[0]},) for data of "
            f"shape {tuple(x.shape)}, got shape {tuple(values.shape)}"
        )
    return values.to(x.device).reshape(-1, *(1,) * (x.ndim - 1))


def time_rows(t: Time, x: Num[Tensor, "batch ..."], name: str = "t") -> Tensor:
    """Checked times, shaped to multiply x, in at least float32 and at least x's floating dtype."""
    rows = per_sample(as_time(t, name), x, name)
    return rows.to(wide(rows, x)) if x.is_floating_point() else rows


def require_data(name: str, x: Tensor) -> None:
    """Raises unless x is a batch of floating-point samples.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: x has no batch dimension.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor (batch, …), got {described(x)}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name}: expected floating-point data, got {x.dtype}; convert it with .float(), or "
            "take Mask or Edit for tokens"
        )
    require_batch(name, x)


def require_batch(name: str, x: Tensor) -> None:
    """Raises unless x has a batch dimension.

    Raises:
        ValueError: x is 0-d.
    """
    if x.ndim == 0:
        raise ValueError(f"{name}: expected a batch (batch, …), got a 0-d tensor")


def require_tokens(
    name: str, x: Int[Tensor, "batch ..."], entries: int, what: str = "tokens"
) -> None:
    """Raises unless x holds integers in [0, entries).

    Raises:
        TypeError: x is not an integer tensor.
        ValueError: x has no batch dimension, or a token is out of the vocabulary.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor of tokens (batch, …), got {described(x)}")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"{name}: expected integer tokens, got {x.dtype}; convert it with .long()")
    require_batch(name, x)
    if readable(x) and not bool(((x >= 0) & (x < entries)).all()):
        raise ValueError(
            f"{name}: expected {what} in [0, {entries}), got values from {int(x.min())} to "
            f"{int(x.max())}"
        )


def require_same_shape(name: str, x: Tensor, like: str, other: Tensor) -> None:
    """Raises unless x has other's shape.

    Raises:
        ValueError: the shapes differ.
    """
    if x.shape != other.shape:
        raise ValueError(
            f"{name}: expected the shape of {like}, {tuple(other.shape)}, got {tuple(x.shape)}"
        )
