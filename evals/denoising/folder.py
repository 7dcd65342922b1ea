"""Pictures from a folder: PNG and JPEG files of any size; sub-folders, are the classes.

Every picture is turned upright (EXIF), scaled so that its shorter side fits, and cut to a square
around its centre. Transparent parts become white. All of them are held in memory, a byte for each
channel of each pixel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ropewalk.evals.denoising.data import MISSING, ImageData
from ropewalk.evals.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg")
COLOURS = ("auto", "grey", "rgb")
# Modes whose pictures are grey; of any other one the colours are kept.
GREY_MODES = ("1", "L", "LA", "I;16", "I")
MOST_NAMED = 3


def folder_of_images(
    folder: Path, *, size: int, colour: str = "auto", unseen_share: float = 0.1
) -> ImageData:
    """Reads all pictures of a folder.

    Args:
        folder: holds pictures, or one sub-folder with pictures for each class.
        size: side of the square that every picture becomes.
        colour: `grey`, `rgb`, or `auto`: grey if all pictures are.
        unseen_share: share of the pictures, in each class, that is never trained on.

    Raises:
        InputError: there are no pictures, some cannot be read, they lie beside sub-folders that
            hold pictures too, they do not fit memory, or they are too few.
    """
    files, labels, classes = _find(folder)
    channels = _channels(files, colour)
    _check_memory(len(files), size, channels)
    images = np.empty((len(files), channels, size, size), dtype=np.uint8)
    failed = []
    for index, file in enumerate(files):
        try:
            images[index] = _read(file, size, channels)
        except _unreadable() as error:
            failed.append(f"{str(file)!r} ({one_line(error)})")
    _refuse(failed, len(files))
    data = ImageData(
        name=folder.resolve().name,
        images=torch.from_numpy(images),
        levels=256,
        labels=torch.tensor(labels) if classes else None,
        classes=classes,
        unseen_share=unseen_share,
    )
    _ = data.split  # refuses too few pictures now
    return data


def _find(folder: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Files, their classes, and the classes' names; the order is that of the paths."""
    if not folder.is_dir():
        raise InputError(f"--data {str(folder)!r} is no folder; give a folder of images or digits")

    def pictures(paths: Sequence[Path]) -> list[Path]:
        return sorted(
            path
            for path in paths
            if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
        )

    direct = pictures(list(folder.iterdir()))
    found = {
        child.name: pictures(list(child.rglob("*")))
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    }
    found = {name: files for name, files in found.items() if files}
    if direct and found:
        raise InputError(
            f"--data {str(folder)!r} holds images ({direct[0].name!r}) beside sub-folders of "
            f"images ({next(iter(found))!r}): sub-folders are classes; put every image into "
            "one, or none"
        )
    if direct:
        return direct, [], ()
    if not found:
        raise InputError(f"--data {str(folder)!r} holds no image: no file ends in {_or(ENDINGS)}")
    files = [file for group in found.values() for file in group]
    labels = [number for number, group in enumerate(found.values()) for _ in group]
    return files, labels, tuple(found)


def _channels(files: Sequence[Path], colour: str) -> int:
    """How many channels the pictures get; reads headers only."""
    if colour != "auto":
        return 1 if colour == "grey" else 3
    image_module = _pillow()
    failed = []
    channels = 1
    for file in files:
        try:
            with image_module.open(file) as image:
                channels = max(channels, 1 if image.mode in GREY_MODES else 3)
        except _unreadable() as error:
            failed.append(f"{str(file)!r} ({one_line(error)})")
    _refuse(failed, len(files))
    return channels


def _read(file: Path, size: int, channels: int) -> np.ndarray:
    """One picture as (channels, size, size) bytes."""
    from PIL import Image, ImageOps

    with Image.open(file) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    image = _flat(image).convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (size, size), method=Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _flat(image: "Image") -> "Image":
    """With what is transparent made white, and 16 bits made 8."""
    from PIL import Image

    if image.mode.startswith("I"):
        # Pillow would cut values off at 255 instead of scaling them.
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    return image


def _check_memory(count: int, size: int, channels: int) -> None:
    """Raises InputError if the pictures would take more than half of what is free."""
    import psutil

    needed = count * size * size * channels
    free = psutil.virtual_memory().available
    if needed > free // 2:
        raise InputError(
            f"{count} images of {size} × {size} with {channels} channels take "
            f"{needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free; "
            "take a smaller --image-size or fewer images"
        )


def _refuse(failed: Sequence[str], count: int) -> None:
    """Raises InputError if a file could not be read: leaving it out would change the data."""
    if failed:
        more = f" and {len(failed) - MOST_NAMED} more" if len(failed) > MOST_NAMED else ""
        raise InputError(
            f"{len(failed)} of {count} images cannot be read: "
            f"{', '.join(failed[:MOST_NAMED])}{more}; mend them or take them out of the folder"
        )


def _pillow():
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(MISSING) from error
    return Image


def _unreadable() -> tuple[type[Exception], ...]:
    """What Pillow raises for a file that is damaged or no image."""
    return (OSError, SyntaxError, ValueError, _pillow().DecompressionBombError)


def _or(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " or " + names[-1]
