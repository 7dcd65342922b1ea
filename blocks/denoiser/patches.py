"""Arrays as sequences of patches and back, in any number of dimensions.

    (batch, channels, *size)  ⇄  (batch, tokens, features)      tokens in row-major order

A patch's features go into the model as (channels, *patch), the order of a convolution's weight, and
come out as (*patch, channels), the order of the published DiT's last layer (arXiv 2212.09748 §3.2).
"""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

Size = tuple[int, ...]


def axes_of(value: int | Sequence[int], name: str, axes: int | None = None) -> Size:
    """A size along each axis; one number stands for all of them, and for two if nothing says more.

    Raises:
        TypeError: something else than integers.
        ValueError: another number of axes, or a size below 1.
    """
    if not isinstance(value, int | Sequence):
        raise TypeError(f"{name}: expected integers, got {value!r}")
    given = (value,) * (axes or 2) if isinstance(value, int) else tuple(value)
    if any(isinstance(n, bool) or not isinstance(n, int) for n in given):
        raise TypeError(f"{name}: expected integers, got {value!r}")
    if not given or min(given) < 1:
        raise ValueError(f"{name}: expected sizes of at least 1, got {value!r}")
    if axes is not None and len(given) != axes:
        raise ValueError(
            f"{name}: expected one number, or {axes} of them, one for each axis of input_size, got "
            f"{value!r}"
        )
    return given


def grid_of(size: Sequence[int], patch_size: Size, name: str = "x") -> Size:
    """Patches along each axis.

    Raises:
        ValueError: another number of axes, or sizes that are no multiples of the patch.
    """
    size = tuple(size)
    if len(size) != len(patch_size):
        raise ValueError(
            f"{name}: expected {len(patch_size)} axes after the channels, as the patch "
            f"{patch_size} has, got {size}"
        )
    if any(n < 1 or n % p for n, p in zip(size, patch_size, strict=True)):
        raise ValueError(
            f"{name}: expected sizes that are multiples of the patch {patch_size}, got {size}; "
            "crop or pad it, or choose another patch_size"
        )
    return tuple(n // p for n, p in zip(size, patch_size, strict=True))


def patchify(
    x: Float[Tensor, "batch channels *size"], patch_size: Size
) -> Float[Tensor, "batch tokens features"]:
    """The patches of an array, each as (channels, *patch).

    Args:
        x: sizes that are multiples of the patch.
        patch_size: elements of a patch along each axis.
    """
    axes = len(patch_size)
    cells = [n // p for n, p in zip(x.shape[2:], patch_size, strict=True)]
    split = [part for pair in zip(cells, patch_size, strict=True) for part in pair]
    grid, within = [2 + 2 * i for i in range(axes)], [3 + 2 * i for i in range(axes)]
    parts = x.reshape(*x.shape[:2], *split).permute(0, *grid, 1, *within)
    return parts.reshape(x.shape[0], math.prod(cells), x.shape[1] * math.prod(patch_size))


def unpatchify(
    patches: Float[Tensor, "batch tokens features"], grid: Sequence[int], patch_size: Size
) -> Float[Tensor, "batch channels *size"]:
    """The array of patches, each given as (*patch, channels).

    Args:
        patches: as many as the grid has cells.
        grid: cells along each axis.
        patch_size: elements of a patch along each axis.
    """
    axes = len(patch_size)
    channels = patches.shape[-1] // math.prod(patch_size)
    parts = patches.reshape(patches.shape[0], *grid, *patch_size, channels)
    order = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    size = [cells * p for cells, p in zip(grid, patch_size, strict=True)]
    return parts.permute(0, 1 + 2 * axes, *order).reshape(patches.shape[0], channels, *size)
