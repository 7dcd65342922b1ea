"""Draws the pictures that are measured: as many of each class as the trained ones have."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ropewalk.evals.denoising.build import clean, pictures
from ropewalk.evals.denoising.data import ImageData
from ropewalk.evals.denoising.recipe import Recipe
from ropewalk.evals.denoising.train import seeded
from ropewalk.evals.errors import InputError, one_line

if TYPE_CHECKING:
    from ropewalk.blocks.diffusion import Process

# Samples drawn at once.
BATCH = 512
# Of random numbers; the others are in train.py.
STREAM = 2
SOLVERS = {
    "gaussian": "heun",
    "poisson-flow": "heun",
    "cold": "euler",
    "mask": "ancestral",
    "edit": "ancestral",
}


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        samples: how many; as many as there are trained pictures if None.
        solver: of `ropewalk.blocks.diffusion.sample`; None for the process's usual one.
        steps: from noise to data.
        guidance: scale s = 1 + w of classifier-free guidance, with w that of `ClassifierFree(w)`:
            unconditional + s·(conditional − unconditional); 1 is the conditional model as it is,
            0 draws without regard to classes.
        stochasticity: 0 to 1; None for the solver's own.
    """

    samples: int | None = None
    solver: str | None = None
    steps: int = 25
    guidance: float = 1.0
    stochasticity: float | None = None

    def check(self) -> None:
        """Checks every value by itself.

        Raises:
            InputError: says what was expected, what came and how to mend it.
        """
        if self.samples is not None and self.samples < 2:
            raise InputError(f"--samples must be at least 2, got {self.samples}")
        if self.steps < 1:
            raise InputError(f"--sampling-steps must be at least 1, got {self.steps}")
        if not 0.0 <= self.guidance < float("inf"):
            raise InputError(f"--guidance must not be negative, got {self.guidance}")
        if self.stochasticity is not None and not 0.0 <= self.stochasticity <= 1.0:
            raise InputError(f"--stochasticity must be in [0, 1], got {self.stochasticity}")

    def settled(self, recipe: Recipe, data: ImageData) -> "Sampling":
        """With everything that was left open decided.

        Raises:
            InputError: guidance is asked for, and the model learns no condition or no null
                condition to guide with.
        """
        if self.guidance != 1.0 and not data.classes:
            raise InputError(
                f"--guidance {self.guidance:g} needs classes: put the images of each class into a "
                "sub-folder, or leave it at 1"
            )
        if self.guidance != 1.0 and recipe.label_drop == 0.0:
            raise InputError(
                f"--guidance {self.guidance:g} needs a model that was trained without its class at "
                "times, its null condition: take a --label-drop above 0, such as 0.1"
            )
        return Sampling(
            samples=self.samples or len(data.split[0]),
            solver=self.solver or SOLVERS[recipe.process],
            steps=self.steps,
            guidance=self.guidance,
            stochasticity=self.stochasticity,
        )

    def describe(self) -> dict[str, Any]:
        """All values, as they stand in a run's file."""
        return asdict(self)


def wanted_classes(data: ImageData, count: int) -> Tensor | None:
    """Classes to draw, in the trained pictures' shares: (count,), or None without classes."""
    if data.labels is None:
        return None
    labels = data.labels[data.split[0]]
    return labels.repeat(-(-count // len(labels)))[:count]


@torch.no_grad()
def draw(
    model: nn.Module,
    process: "Process",
    recipe: Recipe,
    sampling: Sampling,
    data: ImageData,
    labels: Tensor | None,
    *,
    count: int,
    device: torch.device,
    on_samples: Callable[[int], None] | None = None,
) -> Float[Tensor, "samples channels height width"]:
    """Draws samples.

    Args:
        model: the denoiser, on `device`.
        process: of its training.
        recipe: of its training.
        sampling: a settled one.
        data: what it was trained on, for its shape and, with a cold process, for pictures to start
            from.
        labels: their classes; None without any.
        count: how many.
        device: where to compute.
        on_samples: called with how many are new.

    Returns:
        Pictures in [−1, 1], on the CPU.

    Raises:
        InputError: the solver does not exist or the process does not define it.
    """
    from ropewalk.blocks.diffusion.sampler import sample

    x0 = clean(recipe, data, data.split[0][:1])
    guidance = None
    if sampling.guidance != 1.0:
        from ropewalk.blocks.diffusion.guidance import ClassifierFree

        # The library counts from the conditional model: w = s − 1.
        guidance = ClassifierFree(sampling.guidance - 1.0)
    optional = {}
    if sampling.stochasticity is not None:
        optional["stochasticity"] = sampling.stochasticity
    drawn = []
    for start in range(0, count, BATCH):
        stop = min(start + BATCH, count)
        condition = None if labels is None else labels[start:stop].to(device)
        generator = seeded(recipe.seed, STREAM, start, device=device)
        try:
            part = sample(
                model,
                process,
                (stop - start, *x0.shape[1:]),
                steps=sampling.steps,
                solver=sampling.solver or SOLVERS[recipe.process],
                guidance=guidance,
                condition=condition,
                generator=generator,
                **optional,
            )
        except (ValueError, TypeError) as error:
            raise InputError(one_line(error)) from error
        drawn.append(pictures(recipe, data, part.cpu()).float())
        if on_samples is not None:
            on_samples(stop - start)
    return torch.cat(drawn)
