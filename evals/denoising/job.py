"""The job of `ropewalk denoise`: train, draw samples, measure them, and keep it all in one folder.

checkpoint.safetensors   what a killed training continues from
denoising.json           configuration, losses, figures, versions, hardware: reports need no more
samples.safetensors      the samples that were measured
model.safetensors        the averaged weights, for `load_denoiser`
"""

from contextlib import ExitStack
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ropewalk.evals.denoising import checkpoint, results
from ropewalk.evals.denoising.build import check_against, new_model, parameters_of, process_for
from ropewalk.evals.denoising.data import DIGITS, ImageData
from ropewalk.evals.denoising.metrics import measure, passes_gate
from ropewalk.evals.denoising.parallel import Ranks, check_ranks, own_rank, started
from ropewalk.evals.denoising.progress import StepProgress
from ropewalk.evals.denoising.recipe import Recipe
from ropewalk.evals.denoising.request import DenoiseRequest
from ropewalk.evals.denoising.sampling import Sampling, draw, wanted_classes
from ropewalk.evals.denoising.train import Batches, Trained, losses_of, on_device, train
from ropewalk.evals.models import choose_device
from ropewalk.evals.run_folder import RunFolder

# Batches over which the loss on trained and on unseen pictures is averaged.
LOSS_BATCHES = 16
LOSS_STREAM = 3
# What a first run with two samples shows: that solver, guidance and process go together.
TRIAL = 2


def denoise(request: DenoiseRequest, console: Console | None = None) -> dict[str, Any]:
    """Carries out a request, or what is left of it.

    Args:
        request: what to train, and where the run lives.
        console: where progress is shown; nowhere if None.

    Returns:
        The content of denoising.json; of other ranks than the first, nothing.

    Raises:
        InputError: the request cannot be carried out; no work has been done then.
    """
    is_main = own_rank() == 0
    request.check(writes=is_main)
    data = request.read_data()
    recipe = request.recipe
    check_ranks(request.sharding, recipe.batch_size)
    check_against(recipe, data)
    sampling = request.sampling.settled(recipe, data)
    device = choose_device(request.device)
    _try_sampling(recipe, sampling, data)
    configuration = {"data": data.describe(), "recipe": recipe.describe()}
    content: dict[str, Any] = {}
    with ExitStack() as stack:
        if is_main:
            results.check_configuration(request.out, configuration)
            stack.enter_context(RunFolder(request.out, results.NAME))
            results.check_configuration(request.out, configuration)
            content = results.opened(request.out, configuration)
        with started(request.sharding, device) as ranks:
            trained = _train(request, data, configuration, ranks, console if is_main else None)
        if not is_main:
            return content
        return _measure(request, data, sampling, trained, content, ranks.device, console)


def _train(
    request: DenoiseRequest,
    data: ImageData,
    configuration: dict[str, Any],
    ranks: Ranks,
    console: Console | None,
) -> Trained:
    steps = request.recipe.steps
    state = checkpoint.read_state(request.out)
    done = 0 if state is None else state.step
    if console is not None and 0 < done < steps:
        console.print(f"continuing: {done} of {steps} steps are done", highlight=False)
    with StepProgress(console if done < steps else None, "training", steps, done) as progress:
        return train(
            request.recipe,
            data,
            request.out,
            configuration,
            ranks=ranks,
            checkpoint_every=request.checkpoint_every,
            compiled=request.compiled,
            on_step=lambda step, loss: progress.show(step, f"loss {loss:.3f}"),
        )


def _measure(
    request: DenoiseRequest,
    data: ImageData,
    sampling: Sampling,
    trained: Trained,
    content: dict[str, Any],
    device: torch.device,
    console: Console | None,
) -> dict[str, Any]:
    """Samples and figures, unless they are there already."""
    if content["complete"] and content["sampling"] == sampling.describe():
        return content
    recipe = request.recipe
    model = trained.model.to(device)
    process = process_for(recipe, data)
    count = sampling.samples or len(data.split[0])
    labels = wanted_classes(data, count)
    with StepProgress(console, "sampling", count) as progress:
        samples = draw(
            model,
            process,
            recipe,
            sampling,
            data,
            labels,
            count=count,
            device=device,
            on_samples=lambda new: progress.show(progress.done + new, ""),
        )
    measured = measure(samples, labels, data)
    content |= {
        "sampling": sampling.describe(),
        "parameters": parameters_of(model),
        "sessions": trained.state.sessions,
        "losses": results.thinned(trained.state.losses),
        "loss": {
            name: _mean_loss(model, recipe, data, part, device)
            for name, part in zip(("trained", "unseen"), data.split, strict=True)
        },
        "measured": measured,
        "gate": None,
        "complete": True,
    }
    if request.data == DIGITS and (sampling.guidance, count) == (1.0, len(data.split[0])):
        content["gate"] = passes_gate(measured)
    averaged = {name: value.detach().cpu() for name, value in model.named_parameters()}
    header = {"format": checkpoint.FORMAT, "configuration": content["configuration"]}
    checkpoint.write_tensors(request.out / checkpoint.WEIGHTS, averaged, header)
    results.write_samples(request.out, samples, labels, data)
    results.write(request.out, content)
    return content


@torch.no_grad()
def _mean_loss(
    model: nn.Module, recipe: Recipe, data: ImageData, part: Tensor, device: torch.device
) -> float:
    """Loss of the averaged weights on some pictures, classes withheld as in training."""
    process = process_for(recipe, data)
    batches = Batches(recipe, data, process, part=part, stream=LOSS_STREAM)
    drawn = (on_device(batches(number), device) for number in range(LOSS_BATCHES))
    return fmean(losses_of(model, process, batch).mean().item() for batch in drawn)


def _try_sampling(recipe: Recipe, sampling: Sampling, data: ImageData) -> None:
    """Draws two samples with first weights, so that a refusal comes before work."""
    draw(
        new_model(recipe, data.form).eval(),
        process_for(recipe, data),
        recipe,
        sampling,
        data,
        wanted_classes(data, TRIAL),
        count=TRIAL,
        device=torch.device("cpu"),
    )
