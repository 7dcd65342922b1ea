"""The published sizes: S, B, L and XL, with patches of 2, 4 or 8 (arXiv 2212.09748, table 1)."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

from ropewalk.blocks.denoiser.model import DiffusionTransformer
from ropewalk.blocks.denoiser.options import Options


class Width(NamedTuple):
    """Of a model."""

    dim: int
    depth: int
    heads: int


WIDTHS = {
    "S": Width(384, 12, 6),
    "B": Width(768, 12, 12),
    "L": Width(1024, 24, 16),
    "XL": Width(1152, 28, 16),
}
PATCHES = (2, 4, 8)
PRESETS: dict[str, tuple[Width, int]] = {
    f"{name}/{patch}": (width, patch) for name, width in WIDTHS.items() for patch in PATCHES
}

PUBLISHED: Options = {
    "mixer": "attention",
    "feed_forward": "gelu",
    "rotary": "absolute",
    "learn_sigma": True,
    "time_steps": 1000,
}
"""What makes a `DiffusionTransformer` the published DiT, which has 1000 classes."""


def preset(
    name: str,
    input_size: int | Sequence[int] = 32,
    channels: int | None = 4,
    **options: Unpack[Options],
) -> DiffusionTransformer:
    """A model of a published size.

    With `num_classes=1000, **PUBLISHED` it is DiT itself: XL/2 has 675 million parameters. Without,
    its feed-forward is SwiGLU of the same number of parameters and its positions are rotary.

    Args:
        name: such as "XL/2": the size and the patch.
        input_size: of the latent image; 32 for 256 × 256 pixels.
        channels: of the latent image.
        **options: of `DiffusionTransformer`.

    Raises:
        ValueError: an unknown name, or what `DiffusionTransformer` refuses.
        TypeError: as `DiffusionTransformer`.

    Example:
        >>> model = preset("S/2", num_classes=1000)
    """
    if name not in PRESETS:
        raise ValueError(f"name: expected one of {', '.join(PRESETS)}, got {name!r}")
    width, patch = PRESETS[name]
    return DiffusionTransformer(input_size, patch, channels, *width, **options)
