"""A recipe's model and process, as objects."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ropewalk.evals.denoising.data import Form, ImageData
from ropewalk.evals.denoising.recipe import DISCRETE, Recipe
from ropewalk.evals.errors import InputError, one_line

if TYPE_CHECKING:
    from ropewalk.blocks.denoiser import DiffusionTransformer
    from ropewalk.blocks.diffusion import Process, Schedule


def check_against(recipe: Recipe, data: ImageData) -> None:
    """Checks that a recipe fits the data.

    Raises:
        InputError: what was expected, what came and how to mend it.
    """
    channels, height, width = data.shape
    if height % recipe.patch_size or width % recipe.patch_size:
        raise InputError(
            f"--patch-size {recipe.patch_size} does not divide the images' {height} × {width} "
            "pixels; choose a divisor"
        )
    if recipe.process in DISCRETE and channels != 1:
        raise InputError(
            f"--process {recipe.process} reads one token for each pixel, but these images have "
            f"{channels} channels; make them grey with --colour grey"
        )
    if len(data.split[0]) < recipe.batch_size:
        raise InputError(
            f"--batch-size {recipe.batch_size} is more than the {len(data.split[0])} images that "
            "are trained on"
        )
    new_model(recipe, data.form, device="meta")


def new_model(
    recipe: Recipe, form: Form, *, device: torch.device | str = "cpu"
) -> "DiffusionTransformer":
    """The model with its first weights, which the seed decides, whatever the device.

    Raises:
        InputError: sizes that do not go together.
    """
    from ropewalk.blocks.denoiser import DiffusionTransformer

    discrete = recipe.process in DISCRETE
    channels, height, width = form.shape
    meta = torch.device(device).type == "meta"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = DiffusionTransformer(
                (height, width),
                recipe.patch_size,
                None if discrete else channels,
                recipe.dim,
                recipe.depth,
                recipe.heads,
                vocabulary=form.levels if discrete else None,
                mixer=recipe.mixer,  # pyright: ignore[reportArgumentType]
                feed_forward=recipe.feed_forward,  # pyright: ignore[reportArgumentType]
                rotary=recipe.rotary,  # pyright: ignore[reportArgumentType]
                adaln=recipe.adaln,  # pyright: ignore[reportArgumentType]
                qk_norm=True,
                registers=recipe.registers,
                num_classes=form.classes,
                device="meta" if meta else None,
            )
    except (ValueError, TypeError) as error:
        raise InputError(one_line(error)) from error
    return model if meta else model.to(device)


def new_process(recipe: Recipe, levels: int) -> "Process":
    """How pictures of so many levels become noise; a cold one has nothing to start from yet."""
    from ropewalk.blocks import diffusion

    schedule = _schedule(recipe.schedule)
    match recipe.process:
        case "gaussian":
            return diffusion.Gaussian(schedule, recipe.parametrisation)
        case "poisson-flow":
            return diffusion.PoissonFlow(recipe.dimension, schedule, recipe.parametrisation)
        case "mask":
            return diffusion.Mask(levels, schedule)
        case "edit":
            return diffusion.Edit(levels, schedule)
        case _:
            return diffusion.Cold(recipe.degradation, schedule)


def process_for(recipe: Recipe, data: ImageData) -> "Process":
    """The process; samples of a cold one start from trained pictures, degraded all the way."""
    from ropewalk.blocks.diffusion import Cold

    process = new_process(recipe, data.levels)
    if isinstance(process, Cold):
        return process.fit(data.continuous(data.split[0]))
    return process


def _schedule(name: str) -> "Schedule":
    from ropewalk.blocks import diffusion

    match name:
        case "rectified-flow":
            return diffusion.RectifiedFlow()
        case "cosine":
            return diffusion.Cosine()
        case "linear-beta":
            return diffusion.LinearBeta()
        case "sigmoid":
            return diffusion.Sigmoid()
        case _:
            return diffusion.Karras()


def clean(recipe: Recipe, data: ImageData, indices: Tensor) -> Tensor:
    """Chosen pictures as the model reads them: numbers in [−1, 1], or tokens (pictures, h, w)."""
    if recipe.process in DISCRETE:
        return data.images[indices].squeeze(1).long()
    return data.continuous(indices)


def pictures(recipe: Recipe, data: ImageData, x0: Tensor) -> Tensor:
    """What a model draws as pictures in [−1, 1], (pictures, channels, height, width)."""
    if recipe.process in DISCRETE:
        return data.to_continuous(x0.unsqueeze(1))
    return x0.clamp(-1.0, 1.0)


def parameters_of(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())
