"""The options of `ropewalk denoise`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ropewalk.evals.options import Threads, set_threads

if TYPE_CHECKING:
    from ropewalk.evals.denoising.parallel import Sharding


def denoise(
    out: Annotated[Path, typer.Option(help="Folder of the run; a stopped one continues.")],
    data: Annotated[
        str, typer.Option(help="digits, or a folder of PNG and JPEG; its sub-folders are classes.")
    ] = "digits",
    image_size: Annotated[
        int | None, typer.Option(help="Side of a folder's pictures; 32 by default.")
    ] = None,
    colour: Annotated[
        str | None, typer.Option(help="auto, grey or rgb, of a folder's pictures.")
    ] = None,
    unseen: Annotated[
        float | None, typer.Option(help="Share of a folder that is not trained on; 0.1 by default.")
    ] = None,
    dim: Annotated[int, typer.Option(help="Width of the model.")] = 64,
    depth: Annotated[int, typer.Option(help="Blocks.")] = 4,
    heads: Annotated[int, typer.Option(help="Heads of attention.")] = 4,
    patch_size: Annotated[
        int | None, typer.Option(help="Side of a patch; leaves at most 256 tokens by default.")
    ] = None,
    mixer: Annotated[str, typer.Option(help="attention, recurrent or hybrid.")] = "attention",
    feed_forward: Annotated[str, typer.Option(help="swiglu, monarch or gelu.")] = "swiglu",
    rotary: Annotated[str, typer.Option(help="axial, absolute or none.")] = "axial",
    adaln: Annotated[str, typer.Option(help="full, shared or low_rank.")] = "full",
    registers: Annotated[int, typer.Option(help="Learned tokens beside the picture's.")] = 0,
    process: Annotated[
        str, typer.Option(help="gaussian, poisson-flow, cold, mask or edit.")
    ] = "gaussian",
    schedule: Annotated[
        str, typer.Option(help="rectified-flow, cosine, linear-beta, sigmoid or karras.")
    ] = "rectified-flow",
    parametrisation: Annotated[
        str | None, typer.Option(help="flow, v, epsilon, x0, score or edm; flow by default.")
    ] = None,
    degradation: Annotated[
        str | None, typer.Option(help="Of --process cold: blur, pixelate, inpaint or fade.")
    ] = None,
    dimension: Annotated[
        int | None, typer.Option(help="Of --process poisson-flow: D; 128 by default.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1500,
    batch_size: Annotated[int, typer.Option(help="Pictures of a step, over all processes.")] = 128,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 4e-3,
    warmup: Annotated[int, typer.Option(help="Steps in which it rises.")] = 100,
    weight_decay: Annotated[float, typer.Option(help="Decoupled.")] = 0.01,
    gradient_norm: Annotated[float, typer.Option(help="Longer gradients are scaled down.")] = 1.0,
    label_drop: Annotated[
        float, typer.Option(help="Share of pictures whose class is withheld.")
    ] = 0.1,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = 0.995,
    times: Annotated[str, typer.Option(help="Noise levels: logit-normal or uniform.")] = (
        "logit-normal"
    ),
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Decides weights, noise and samples.")] = 0,
    samples: Annotated[
        int | None, typer.Option(help="How many; as many as trained pictures by default.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="heun, euler, ancestral, dpmpp_2m, …; suits the process.")
    ] = None,
    sampling_steps: Annotated[int, typer.Option(help="From noise to data.")] = 25,
    guidance: Annotated[
        float,
        typer.Option(help="s = 1 + w of ClassifierFree(w): 1 is the model as it is, without it."),
    ] = 1.0,
    stochasticity: Annotated[
        float | None, typer.Option(help="0 to 1; the solver's own by default.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    sharding: Annotated[
        str | None, typer.Option(help="Under torchrun: ddp, its default, or fsdp.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Faster after a minute; needs a compiler.")
    ] = False,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 100,
    threads: Threads = None,
) -> None:
    """Trains a denoiser on digits or a folder of images, and measures the samples it draws."""
    from rich.console import Console

    from ropewalk.evals.denoising.data import DIGITS
    from ropewalk.evals.denoising.recipe import DISCRETE, Recipe
    from ropewalk.evals.denoising.request import IMAGE_SIZE, DenoiseRequest, usual_patch
    from ropewalk.evals.denoising.sampling import Sampling

    if patch_size is None:
        side = 8 if data == DIGITS else image_size or IMAGE_SIZE
        patch_size = 1 if process in DISCRETE else usual_patch(side)
    request = DenoiseRequest(
        out=out,
        data=data,
        image_size=image_size,
        colour=colour,
        unseen=unseen,
        recipe=Recipe.asked(
            dim=dim,
            depth=depth,
            heads=heads,
            patch_size=patch_size,
            mixer=mixer,
            feed_forward=feed_forward,
            rotary=rotary,
            adaln=adaln,
            registers=registers,
            process=process,
            schedule=schedule,
            parametrisation=parametrisation,
            degradation=degradation,
            dimension=dimension,
            steps=steps,
            batch_size=batch_size,
            rate=rate,
            warmup=warmup,
            weight_decay=weight_decay,
            gradient_norm=gradient_norm,
            label_drop=label_drop,
            ema=ema,
            times=times,
            precision=precision,
            seed=seed,
        ),
        sampling=Sampling(
            samples=samples,
            solver=solver,
            steps=sampling_steps,
            guidance=guidance,
            stochasticity=stochasticity,
        ),
        device=device,
        sharding=cast("Sharding | None", sharding),
        compiled=compiled,
        checkpoint_every=checkpoint_every,
    )
    from ropewalk.evals.denoising.parallel import own_rank

    request.check(writes=own_rank() == 0)
    set_threads(threads)
    from ropewalk.evals.denoising.job import denoise as carry_out

    if carry_out(request, Console(stderr=True)):
        from ropewalk.evals.commands import report_denoiser

        report_denoiser(request.out)
