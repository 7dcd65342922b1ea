"""Trains a denoiser: AdamW, averaged weights, exact to the bit when it is killed and continued.

Order of pictures, withheld classes, times and noise of a step follow from the recipe's seed and the
step's number alone, on the CPU. So no state of random numbers needs to be kept, and a run is the
same on one process or many, but for the order in which floating-point numbers are added.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ropewalk.blocks.diffusion import Process
from ropewalk.blocks.diffusion.train import EMA, LogitNormal, Uniform, denoising_loss
from ropewalk.evals.denoising import checkpoint
from ropewalk.evals.denoising.build import clean, new_model, process_for
from ropewalk.evals.denoising.checkpoint import State
from ropewalk.evals.denoising.data import ImageData
from ropewalk.evals.denoising.interrupt import put_off
from ropewalk.evals.denoising.parallel import Ranks, whole
from ropewalk.evals.denoising.recipe import Recipe
from ropewalk.evals.environment import hardware, versions

BETAS = (0.9, 0.99)
TIMES = {"logit-normal": LogitNormal(), "uniform": Uniform()}
PACKAGES = ("scikit-learn", "pillow")
# Streams of random numbers: of training, and in it of the pictures' order.
TRAINING = 0
ORDER = 1


class Drawn(NamedTuple):
    """What a step trains on.

    Attributes:
        x0: pictures as the model reads them.
        condition: their classes, some withheld; None where there are none.
        times: in (0, 1), (batch,).
        noise: of the process.
    """

    x0: Tensor
    condition: Tensor | None
    times: Float[Tensor, " batch"]
    noise: Any


@dataclass(frozen=True)
class Trained:
    """A training that came to its end, or to where it was stopped.

    Attributes:
        model: with averaged weights, on the CPU, in evaluation mode.
        state: losses and sessions.
    """

    model: nn.Module
    state: State


class Batches:
    """Every step's batch, from the recipe's seed and the step's number alone.

    Args:
        recipe: how many, and how noise is drawn.
        data: the pictures.
        process: that makes noise of them.
        part: indices of those that are taken; the trained ones by default.
        stream: batches of another one are unlike these.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        process: Process,
        *,
        part: Tensor | None = None,
        stream: int = TRAINING,
    ) -> None:
        self._recipe = recipe
        self._process = process
        self._stream = stream
        part = data.split[0] if part is None else part
        self._x0 = clean(recipe, data, part)
        self._labels = None if data.labels is None else data.labels[part]
        self._null = len(data.classes)
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> Drawn:
        """The whole batch of a step, on the CPU."""
        chosen = self._indices(step)
        generator = seeded(self._recipe.seed, self._stream, step)
        x0 = self._x0[chosen]
        condition = None
        if self._labels is not None:
            kept = torch.rand(len(chosen), generator=generator) >= self._recipe.label_drop
            condition = torch.where(kept, self._labels[chosen], self._null)
        draw_times = TIMES[self._recipe.times]
        times = draw_times(len(chosen), self._process.schedule, generator=generator).float()
        return Drawn(x0, condition, times, self._process.fresh(x0, generator=generator))

    def _indices(self, step: int) -> Tensor:
        """Pictures of a step: every picture once before any comes again."""
        count, size = len(self._x0), self._recipe.batch_size
        places = np.arange(step * size, (step + 1) * size)
        epochs = range(places[0] // count, places[-1] // count + 1)
        self._orders = {
            epoch: self._orders[epoch] if epoch in self._orders else self._order(epoch)
            for epoch in epochs
        }
        orders = np.concatenate([self._orders[epoch] for epoch in epochs])
        return torch.from_numpy(orders[places - epochs[0] * count])

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng((self._recipe.seed, self._stream, ORDER, epoch))
        return generator.permutation(len(self._x0))


def on_device(drawn: Drawn, device: torch.device, part: slice = slice(None)) -> Drawn:
    """A part of a batch on a device."""
    return tree_map(lambda x: None if x is None else x[part].to(device), drawn)


def seeded(seed: int, *stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose, whose numbers are unlike any other's."""
    entropy = np.random.SeedSequence((seed, *stream)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(entropy[0]) >> 1)


def losses_of(
    model: Callable[..., Tensor], process: Process, drawn: Drawn
) -> Float[Tensor, " batch"]:
    """The loss of every picture of a batch."""
    return denoising_loss(
        model,
        process,
        drawn.x0,
        drawn.condition,
        times=lambda *_, **__: drawn.times,
        noise=drawn.noise,
    )


def train(
    recipe: Recipe,
    data: ImageData,
    folder: Path,
    configuration: dict[str, Any],
    *,
    ranks: Ranks,
    checkpoint_every: int = 100,
    stop_at: int | None = None,
    compiled: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> Trained:
    """Trains, continuing from the checkpoint in `folder` if there is one.

    Args:
        recipe: what to train.
        data: on which pictures.
        folder: where the checkpoint is; every rank must see it.
        configuration: goes into the checkpoint; whoever calls has compared it.
        ranks: the processes that train together.
        checkpoint_every: steps between checkpoints: what a kill loses at most.
        stop_at: step to stop at, having written a checkpoint.
        compiled: whether `torch.compile` makes the model's code.
        on_step: called with the number of steps done and the last one's loss.

    Raises:
        InputError: the checkpoint is damaged or of another shape.
        KeyboardInterrupt: SIGINT came; a single process has written a checkpoint of its last step
            before, several ones stop where they are.
    """
    part = ranks.part(recipe.batch_size)
    process = process_for(recipe, data)
    model = new_model(recipe, data.form, device=ranks.device)
    forward = ranks.wrap(model, model.blocks)
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.rate,
        betas=BETAS,
        weight_decay=recipe.weight_decay,
        fused=ranks.sharding != "fsdp",
    )
    ema = EMA(model, recipe.ema)
    state = State(configuration, [], [])
    if (folder / checkpoint.NAME).exists():
        state = checkpoint.restore(folder, model, ema, optimiser)
        ranks.wait()  # nobody writes while another one reads
    end = min(stop_at or recipe.steps, recipe.steps)
    if state.step < end:
        session = _new_session(state.step, ranks)
        state.sessions.append(session)
        started = perf_counter()
        batches = Batches(recipe, data, process)
        called = torch.compile(forward) if compiled else forward
        model.train()
        # Several processes would have to agree on the step; there an interrupt is a kill.
        with put_off(wanted=ranks.count == 1) as interrupt:
            for step in range(state.step, end):
                for group in optimiser.param_groups:
                    group["lr"] = recipe.rate_at(step)
                drawn = on_device(batches(step), ranks.device, part)
                with precision(recipe, ranks.device):
                    loss = losses_of(called, process, drawn).mean()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_norm)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                ema.update()
                state.losses.append(ranks.mean(loss.detach()))
                if on_step is not None:
                    on_step(state.step, state.losses[-1])
                stop = interrupt.came
                if stop or state.step % checkpoint_every == 0 or state.step == end:
                    session |= {"until": state.step, "seconds": round(perf_counter() - started, 3)}
                    checkpoint.save(folder, state, model, ema, optimiser, write=ranks.is_main)
                if stop:
                    break
    return Trained(_averaged(recipe, data, ema), state)


def precision(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast, unless everything is to be float32."""
    if recipe.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, recipe.precision))


def _averaged(recipe: Recipe, data: ImageData, ema: EMA) -> nn.Module:
    """A whole model with the averaged weights."""
    model = new_model(recipe, data.form)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in ema.state_dict()["shadow"].items():
            parameters[name].copy_(whole(value))
    return model.eval()


def _new_session(step: int, ranks: Ranks) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "from": step,
        "until": step,
        "seconds": 0.0,
        "processes": ranks.count,
        "sharding": ranks.sharding,
        "device": str(ranks.device),
        "versions": versions(PACKAGES),
        "hardware": hardware(),
    }
