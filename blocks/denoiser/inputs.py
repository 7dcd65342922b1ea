"""What a `DiffusionTransformer` is called with: checks, and the unit of time."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.blocks.denoiser.patches import Size, grid_of
from ropewalk.kernels.autocast import AUTOCAST_DEVICES
from ropewalk.kernels.plain import is_plain, is_transformed

UNIT = 1000.0
# A time in float32 misses its step by less than this; continuous times are further from any.
_SNAP = 1e-3


def check_arrays(
    arrays: Sequence[Tensor],
    channels: int | None,
    vocabulary: int | None,
    patch_size: Size,
    *,
    packed: bool,
) -> list[Size]:
    """The size of each array along the axes of the grid.

    Raises:
        TypeError: no tensors, or another dtype than the model takes.
        ValueError: no arrays, another number of axes or channels, sizes that the patch does not
            divide, tokens out of their range (read on a CPU only).
    """
    if not arrays:
        raise ValueError("x: expected at least one array, got an empty list")
    sizes = []
    shape = "(channels, *size)" if vocabulary is None else "(*size)"
    expected = shape if packed else f"(batch, {shape[1:]}"
    for x in arrays:
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, or a list of tensors, got {type(x).__name__}")
        whole = vocabulary is not None
        if x.is_floating_point() == whole or x.is_complex() or x.dtype == torch.bool:
            wanted = "int64 tokens" if whole else "floating-point data"
            raise TypeError(f"x: expected {wanted}, got {x.dtype}")
        leading = (0 if packed else 1) + (0 if whole else 1)
        if x.ndim != leading + len(patch_size):
            raise ValueError(
                f"x: expected {expected} with {len(patch_size)} axes of size, got "
                f"{tuple(x.shape)}{_mend(x, leading + len(patch_size), packed=packed)}"
            )
        if not whole and x.shape[leading - 1] != channels:
            raise ValueError(
                f"x: expected {expected} with {channels} channels, got {tuple(x.shape)}"
            )
        size = tuple(x.shape[leading:])
        grid_of(size, patch_size)
        if vocabulary is not None:
            _check_tokens(x, vocabulary)
        sizes.append(size)
    return sizes


def _mend(x: Tensor, ndim: int, *, packed: bool) -> str:
    """How to make the number of axes right, where that can be told."""
    if packed:
        return "; arrays of a list have no batch axis, list(x) takes it off" * (x.ndim == ndim + 1)
    one_less = x.ndim == ndim - 1
    return "; x[None] is a batch of one array, x[:, None] has one channel" * one_less


def _check_tokens(x: Tensor, vocabulary: int) -> None:
    readable = x.device.type == "cpu" and is_plain(x) and not is_transformed()
    if readable and x.numel() and not 0 <= int(x.min()) <= int(x.max()) <= vocabulary:
        raise ValueError(
            f"x: expected tokens 0 … {vocabulary - 1}, or {vocabulary} for the mask, got "
            f"{int(x.min())} … {int(x.max())}"
        )


def check_dtype(arrays: Sequence[Tensor], weight: Tensor) -> None:
    """Refuses data in another dtype than the model's, but under autocast.

    Raises:
        ValueError: which, and how to convert.
    """
    kind = weight.device.type
    if kind in AUTOCAST_DEVICES and torch.is_autocast_enabled(kind):
        return
    for x in arrays:
        if x.is_floating_point() and x.dtype != weight.dtype:
            raise ValueError(
                f"x: expected {weight.dtype} as the model is, got {x.dtype}; use x.to("
                f"{weight.dtype}), model.to({x.dtype}), or torch.autocast"
            )


def check_times(t: Tensor | float, batch: int, device: torch.device) -> Float[Tensor, " batch"]:
    """A time for each array; values are read on a CPU only.

    Raises:
        TypeError: not a tensor of floating-point numbers.
        ValueError: another number of times, or times outside of [0, 1].
    """
    if isinstance(t, float):
        t = torch.tensor(t)
    if not isinstance(t, Tensor) or not t.is_floating_point():
        kind = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(f"t: expected floating-point times in [0, 1], a tensor, got {kind}")
    if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != batch):
        raise ValueError(
            f"t: expected ({batch},), a time for each array, or one number, got {tuple(t.shape)}"
        )
    readable = t.device.type == "cpu" and is_plain(t) and not is_transformed()
    if readable and t.numel():
        low, high = t.detach().aminmax()
        # Written so that NaN fails, too.
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"t: expected times in [0, 1], got {float(low):g} … {float(high):g}; step k of n "
                "is time (k + 1) / n"
            )
    return t.to(device).expand(batch)


def check_classes(
    y: Tensor | None,
    batch: int,
    num_classes: int,
    device: torch.device,
    *,
    wait: bool = False,
) -> Int[Tensor, " batch"] | None:
    """Refuses classes that the model does not have.

    Their values are read on a CPU only, or with `wait` wherever they can be read.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: classes for a model without, another number of them, or out of their range.
    """
    if y is None:
        return None
    if not num_classes:
        raise ValueError("y: expected None, as the model has num_classes=0, got classes")
    if not isinstance(y, Tensor) or y.dtype not in (torch.int64, torch.int32):
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y: expected classes, an int64 tensor, got {kind}")
    if tuple(y.shape) != (batch,):
        raise ValueError(f"y: expected ({batch},), a class for each array, got {tuple(y.shape)}")
    here = y.device.type == "cpu" or (wait and not y.is_meta)
    readable = here and is_plain(y) and not is_transformed()
    if readable and batch and not 0 <= int(y.min()) <= int(y.max()) <= num_classes:
        raise ValueError(
            f"y: expected classes 0 … {num_classes - 1}, or {num_classes} for none, got "
            f"{int(y.min())} … {int(y.max())}"
        )
    return y.to(device)


def steps_of(t: Float[Tensor, " batch"], time_steps: int | None) -> Float[Tensor, " batch"]:
    """Times in the unit of the embedding, float32.

    A model of n steps was trained at whole numbers: step k is time (k + 1)/n, and what float32
    leaves of it is rounded back to k; times between steps stay between.
    """
    if time_steps is None:
        return t.to(torch.promote_types(t.dtype, torch.float32)) * UNIT
    steps = t.to(torch.promote_types(t.dtype, torch.float32)) * time_steps - 1
    nearest = steps.round()
    return torch.where((steps - nearest).abs() < _SNAP, nearest, steps)
