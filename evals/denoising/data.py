"""The pictures that a denoiser learns from, and those that it never sees.

Pictures are kept as whole levels, 0 … levels − 1 (17 of them for scikit-learn's digits, 256 for
files), which are tokens to a process on discrete data and numbers in [−1, 1] to all others. The
split into trained and unseen ones is stratified and fixed: it depends on the data alone, so that
runs that differ in their seed are measured against the same pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ropewalk.evals.errors import InputError

DIGITS = "digits"
# The split; a constant, see above.
SPLIT = 0
MISSING = (
    "`ropewalk denoise` needs scikit-learn and Pillow; install them with "
    "`pip install 'ropewalk[diffusion]'`"
)


class Form(NamedTuple):
    """What a model and its process must know of pictures.

    Attributes:
        shape: (channels, height, width).
        levels: of each pixel.
        classes: how many there are; 0 for none.
    """

    shape: tuple[int, int, int]
    levels: int
    classes: int


@dataclass(frozen=True)
class ImageData:
    """Pictures of one size.

    Attributes:
        name: what they are called in reports.
        images: levels of all pictures, (pictures, channels, height, width).
        levels: how many levels there are.
        labels: class of each picture, (pictures,); None where there are no classes.
        classes: names of the classes.
        unseen_share: share of the pictures that is never trained on.
    """

    name: str
    images: UInt8[Tensor, "pictures channels height width"]
    levels: int
    labels: Int[Tensor, " pictures"] | None
    classes: Sequence[str]
    unseen_share: float

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:
        """Indices of the pictures that are trained on, and of those that are not."""
        return split(len(self.images), self.labels, self.unseen_share)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def form(self) -> Form:
        """What a model must know."""
        return Form(self.shape, self.levels, len(self.classes))

    def continuous(self, indices: Tensor) -> Float[Tensor, "chosen channels height width"]:
        """Chosen pictures as float32 in [−1, 1]."""
        return self.to_continuous(self.images[indices])

    def to_continuous(self, levels: Tensor) -> Float[Tensor, "..."]:
        """Levels as float32 in [−1, 1]."""
        return levels.float() * (2.0 / (self.levels - 1)) - 1.0

    def describe(self) -> dict[str, Any]:
        """What identifies the data in a run's configuration."""
        seen = sha256(self.images.numpy().tobytes())
        if self.labels is not None:
            seen.update(self.labels.numpy().tobytes())
        return {
            "name": self.name,
            "pictures": len(self.images),
            "shape": list(self.shape),
            "levels": self.levels,
            "classes": list(self.classes),
            "unseen_share": self.unseen_share,
            "digest": seen.hexdigest()[:16],
        }


def split(count: int, labels: Tensor | None, unseen_share: float) -> tuple[Tensor, Tensor]:
    """Splits pictures by class into trained and unseen ones.

    Args:
        count: how many there are.
        labels: their classes, (count,), if they have any.
        unseen_share: share of the second part, in (0, 1).

    Raises:
        InputError: a part would be empty, or lack a class.
    """
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError(MISSING) from error
    try:
        train, unseen = train_test_split(
            np.arange(count),
            test_size=unseen_share,
            random_state=SPLIT,
            stratify=None if labels is None else labels.numpy(),
        )
    except ValueError as error:
        fewest = count if labels is None else int(labels.bincount().min())
        raise InputError(
            f"{count} pictures, {fewest} in the smallest class, are too few to set "
            f"{unseen_share:g} of each class apart: add pictures or change --unseen"
        ) from error
    return torch.from_numpy(train), torch.from_numpy(unseen)


def digits() -> ImageData:
    """scikit-learn's digits: 1797 grey pictures of 8 × 8 with 17 levels, half of them unseen."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(MISSING) from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(np.asarray(pixels, dtype=np.uint8)).view(-1, 1, 8, 8)
    return ImageData(
        name=DIGITS,
        images=images,
        levels=17,
        labels=torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        classes=tuple(map(str, range(10))),
        unseen_share=0.5,
    )
