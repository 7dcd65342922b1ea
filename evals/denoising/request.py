"""What a user asks `ropewalk denoise` for, and the checks that need no picture."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ropewalk.evals.denoising.data import DIGITS, MISSING, ImageData, digits
from ropewalk.evals.denoising.parallel import SHARDINGS, Sharding
from ropewalk.evals.denoising.recipe import Recipe
from ropewalk.evals.denoising.results import NAME
from ropewalk.evals.denoising.sampling import Sampling
from ropewalk.evals.errors import InputError
from ropewalk.evals.run_folder import check_run_folder

IMAGE_SIZE = 32
UNSEEN = 0.1
# Patches are as small as leaves a picture this many of them.
MOST_TOKENS = 256


@dataclass(frozen=True)
class DenoiseRequest:
    """One training and its measurement, as asked for.

    Attributes:
        out: folder of the run.
        data: `digits`, or a folder of images.
        image_size: side of a folder's pictures.
        colour: `auto`, `grey` or `rgb`, of a folder's pictures.
        unseen: share of a folder's pictures that is never trained on.
        recipe: the training.
        sampling: the samples that are measured.
        device: `auto` or a torch device.
        sharding: `ddp` or `fsdp` under torchrun.
        compiled: whether `torch.compile` makes the model's code.
        checkpoint_every: steps between checkpoints.
    """

    out: Path
    data: str = DIGITS
    image_size: int | None = None
    colour: str | None = None
    unseen: float | None = None
    recipe: Recipe = field(default_factory=Recipe)
    sampling: Sampling = field(default_factory=Sampling)
    device: str = "auto"
    sharding: Sharding | None = None
    compiled: bool = False
    checkpoint_every: int = 100

    def check(self, *, writes: bool = True) -> None:
        """Checks all that can be checked without looking at a picture.

        Args:
            writes: whether this process is the one that writes to the folder.

        Raises:
            InputError: says what was expected, what came and how to mend it.
        """
        from ropewalk.evals.denoising.folder import COLOURS

        if any(find_spec(package) is None for package in ("sklearn", "PIL")):
            raise InputError(MISSING)
        if self.sharding is not None and self.sharding not in SHARDINGS:
            raise InputError(f"--sharding expects ddp or fsdp, got {self.sharding!r}")
        if self.checkpoint_every < 1:
            raise InputError(f"--checkpoint-every must be at least 1, got {self.checkpoint_every}")
        given = {"image-size": self.image_size, "colour": self.colour, "unseen": self.unseen}
        for name, value in given.items():
            if self.data == DIGITS and value is not None:
                raise InputError(
                    f"--{name} is only read with a folder of images; leave it out or give --data"
                )
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"--image-size must be at least 1, got {self.image_size}")
        if self.colour is not None and self.colour not in COLOURS:
            raise InputError(f"--colour expects {', '.join(COLOURS)}, got {self.colour!r}")
        if self.unseen is not None and not 0.0 < self.unseen < 1.0:
            raise InputError(f"--unseen must be between 0 and 1, got {self.unseen}")
        if self.data != DIGITS and not Path(self.data).is_dir():
            raise InputError(f"--data expects digits or a folder of images, got {self.data!r}")
        self.recipe.check()
        self.sampling.check()
        if writes:
            check_run_folder(self.out, NAME)

    def read_data(self) -> ImageData:
        """The pictures.

        Raises:
            InputError: a folder's pictures cannot be read, or are too few.
        """
        if self.data == DIGITS:
            return digits()
        from ropewalk.evals.denoising.folder import folder_of_images

        return folder_of_images(
            Path(self.data),
            size=self.image_size or IMAGE_SIZE,
            colour=self.colour or "auto",
            unseen_share=self.unseen or UNSEEN,
        )


def usual_patch(side: int) -> int:
    """The smallest patch, from 2 on, that leaves a square picture no more than `MOST_TOKENS`."""
    for patch in range(2, side + 1):
        if side % patch == 0 and (side // patch) ** 2 <= MOST_TOKENS:
            return patch
    return 1
