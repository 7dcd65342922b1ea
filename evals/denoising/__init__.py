"""A diffusion transformer trained on pictures, and how good its samples are: `ropewalk denoise`.

    from ropewalk.evals.denoising import load_denoiser

    model, process = load_denoiser("runs/digits")     # what `ropewalk denoise` left there

command.py      the options; request.py, recipe.py, sampling.py hold them, checked
data.py         the digits, and pictures in general; folder.py: pictures from files
build.py        a recipe's model and process
train.py        the steps; checkpoint.py keeps them, parallel.py shares them among processes
metrics.py      figures of samples beside those of real pictures
interrupt.py    Ctrl-C between two steps
job.py          all of it, one after the other; results.py: denoising.json
loading.py      reads a run's model
report.py       table and page; pictures.py: samples, near copies, loss

Nothing is imported here, so that the command line answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ropewalk.blocks.denoiser import DiffusionTransformer
    from ropewalk.blocks.diffusion import Process

__all__ = ["load_denoiser"]


def load_denoiser(folder: str | Path) -> "tuple[DiffusionTransformer, Process]":
    """The model of a run, with its averaged weights, and the process that it was trained for.

    A cold process needs something to start from before it is sampled: `process.fit(data)`.

    Args:
        folder: of the run, trained to its end.

    Raises:
        InputError: there is none, it is damaged or not complete.
    """
    from ropewalk.evals.denoising.loading import load

    return load(folder)
