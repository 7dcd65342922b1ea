"""Reads what `ropewalk denoise` left: the model with its averaged weights, and the process."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ropewalk.evals.denoising import checkpoint, results
from ropewalk.evals.denoising.build import new_model, new_process
from ropewalk.evals.denoising.data import Form
from ropewalk.evals.denoising.recipe import Recipe
from ropewalk.evals.errors import InputError

if TYPE_CHECKING:
    from ropewalk.blocks.denoiser import DiffusionTransformer
    from ropewalk.blocks.diffusion import Process


def load(folder: str | Path) -> "tuple[DiffusionTransformer, Process]":
    """See `ropewalk.evals.denoising.load_denoiser`."""
    folder = Path(folder)
    content = results.read(folder)
    if not content["complete"]:
        raise InputError(
            f"{str(folder)!r} holds a denoiser that is not trained yet; the command that began it "
            "continues it"
        )
    data = content["configuration"]["data"]
    channels, height, width = data["shape"]
    form = Form((channels, height, width), data["levels"], len(data["classes"]))
    recipe = Recipe(**content["configuration"]["recipe"])
    model = new_model(recipe, form)
    path = folder / checkpoint.WEIGHTS
    tensors, _ = checkpoint.read_tensors(path)
    parameters = dict(model.named_parameters())
    checkpoint.check_shapes(path, parameters, tensors)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return model.eval(), new_process(recipe, form.levels)
