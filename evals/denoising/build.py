"""A recipe's model and process, as objects."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ropewalk.evals.denoising.data import ImageData
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
    new_model(recipe, data, device="meta")
    new_process(recipe, data)


def new_model(
    recipe: Recipe, data: ImageData, *, device: torch.device | str = "cpu"
) -> "DiffusionTransformer":
    """The model with its first weights, which the seed decides, whatever the device.

    Raises:
        InputError: sizes that do not go together.
    """
    from ropewalk.blocks.denoiser import DiffusionTransformer

    discrete = recipe.process in DISCRETE
    channels, height, width = data.shape
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
                vocabulary=data.levels if discrete else None,
                mixer=recipe.mixer,  # pyright: ignore[reportArgumentType]
                feed_forward=recipe.feed_forward,  # pyright: ignore[reportArgumentType]
                rotary=recipe.rotary,  # pyright: ignore[reportArgumentType]
                adaln=recipe.adaln,  # pyright: ignore[reportArgumentType]
                qk_norm=True,
                registers=recipe.registers,
                num_classes=len(data.classes),
                device="meta" if meta else None,
            )
    except (ValueError, TypeError) as error:
        raise InputError(one_line(error)) from error
    return model if meta else model.to(device)


def new_process(recipe: Recipe, data: ImageData) -> "Process":
    """How this recipe's data becomes noise."""
    from ropewalk.blocks import diffusion

    schedule = _schedule(recipe.schedule)
    match recipe.process:
        case "gaussian":
            return diffusion.Gaussian(schedule, recipe.parametrisation)
        case "poisson-flow":
            return diffusion.PoissonFlow(recipe.dimension, schedule, recipe.parametrisation)
        case "mask":
            return diffusion.Mask(data.levels, schedule)
        case "edit":
            return diffusion.Edit(data.levels, schedule)
        case _:
            # Samples start from trained pictures, degraded all the way.
            start = data.continuous(data.split[0])
            return diffusion.Cold(recipe.degradation, schedule).fit(start)


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
