"""Trains a bundled model: `ropewalk train-default`.

The run is exact and resumable: every batch follows from the recipe's seed and the step alone, and a
checkpoint holds weights, optimiser state and history, written to a temporary file and renamed, so
that a killed run continues where its last checkpoint stands. Checkpoints are safetensors and JSON.
"""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.evals.default_model import architecture, mixture
from ropewalk.evals.default_model.corpus import TrainingText, standard_library_files
from ropewalk.evals.default_model.recipe import Recipe
from ropewalk.evals.run_folder import replacing

CHECKPOINT = "checkpoint.safetensors"
GRADIENT_NORM = 1.0
VALIDATION_WINDOWS = 64


def optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embed" not in name
    ]
    taken = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    return [
        torch.optim.Muon(
            matrices,
            lr=recipe.matrix_rate,
            weight_decay=recipe.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def mixed_loss(logits: Tensor, rows: list[mixture.Row], synthetic_weight: float) -> Tensor:
    """Cross-entropy averaged within each kind of row, then summed with the kinds' weights.

    Averaging over all tokens at once would let 512 bytes of text drown five digits of a pass key.

    Args:
        logits: (rows, length, vocabulary).
        rows: the batch.
        synthetic_weight: weight of every kind but `text`, whose weight is 1.
    """
    targets = torch.from_numpy(np.stack([row.targets for row in rows]))
    losses = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        targets[:, 1:].flatten(),
        ignore_index=mixture.IGNORE,
        reduction="none",
    ).view(len(rows), -1)
    counted = (targets[:, 1:] != mixture.IGNORE).float()
    total = logits.new_zeros((), dtype=torch.float32)
    for kind in sorted({row.kind for row in rows}):
        chosen = [index for index, row in enumerate(rows) if row.kind == kind]
        mean = losses[chosen].sum() / counted[chosen].sum().clamp(min=1.0)
        total = total + mean * (1.0 if kind == "text" else synthetic_weight)
    return total


def held_out_windows(count: int = VALIDATION_WINDOWS) -> Tensor:
    """The last 512 bytes of held-out library files, as token ids (windows, 512)."""
    length = architecture.TRAINED_LENGTH
    texts = [
        file.text[-length:]
        for file in standard_library_files()
        if file.is_held_out and not file.is_test and len(file.text) >= length
    ]
    return torch.from_numpy(np.stack([architecture.to_tokens(text) for text in texts[:count]]))


@torch.no_grad()
def validate(model: nn.Module, windows: Tensor, *, prompts: int = 32) -> dict[str, float]:
    """Held-out bits per byte over the second half of `windows`, and passkey accuracy at 512.

    The windows are to be no longer than what the model has been trained on so far; beyond that the
    figure would say how the model extrapolates, not how well it has learned.
    """
    model.eval()
    generator = np.random.default_rng(1)
    rows = [
        mixture.passkey_row(None, architecture.TRAINED_LENGTH, generator) for _ in range(prompts)
    ]
    tokens = torch.from_numpy(np.stack([row.tokens for row in rows]))
    half = windows.shape[1] // 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.cat([model(input_ids=part).logits for part in windows.split(16)])
        predicted = torch.cat(
            [model(input_ids=part).logits.argmax(-1) for part in tokens.split(16)]
        )
    loss = functional.cross_entropy(
        logits[:, half - 1 : -1].flatten(0, 1).float(), windows[:, half:].flatten()
    )
    right = 0
    for index, row in enumerate(rows):
        answer = np.flatnonzero(row.targets != mixture.IGNORE)[-6:-1]
        right += bool((predicted[index, answer - 1].numpy() == row.tokens[answer]).all())
    model.train()
    return {"bits_per_byte": loss.item() / float(np.log(2)), "passkey": right / prompts}


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimisers: list[torch.optim.Optimizer],
    state: dict[str, Any],
) -> None:
    """Writes weights, optimiser state and `state` as one safetensors file, atomically."""
    tensors = {f"model.{name}": value.contiguous() for name, value in model.named_parameters()}
    for number, optimiser in enumerate(optimisers):
        for parameter, entries in optimiser.state_dict()["state"].items():
            for name, value in entries.items():
                tensors[f"optimiser.{number}.{parameter}.{name}"] = torch.as_tensor(value).clone()
    with replacing(folder / CHECKPOINT) as partial:
        save_file(tensors, partial, metadata={"state": json.dumps(state)})


def read_state(folder: Path) -> dict[str, Any]:
    """The `state` of the checkpoint in `folder`: recipe, step, history, seconds, versions."""
    with safe_open(folder / CHECKPOINT, framework="pt") as opened:
        return json.loads(opened.metadata()["state"])


def load_checkpoint(
    folder: Path, model: nn.Module, optimisers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """Restores what `save_checkpoint` wrote and returns its `state`."""
    tensors = load_file(folder / CHECKPOINT)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for number, optimiser in enumerate(optimisers):
        entries: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimiser.{number}."):
                _, _, parameter, name = key.split(".", 3)
                entries.setdefault(int(parameter), {})[name] = value
        optimiser.load_state_dict(optimiser.state_dict() | {"state": entries})
    return read_state(folder)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    plug_variant: Callable[[nn.Module, str], Any] | None = None,
    checkpoint_every: int = 200,
    validate_every: int = 500,
    stop_at: int | None = None,
    compiled: bool = False,
    on_step: Callable[[int, float], None] | None = None,
    log: Callable[[str], None] = print,
) -> nn.Module:
    """Runs `recipe`, continuing from the checkpoint in `folder` if there is one.

    Args:
        recipe: what to train.
        folder: where the checkpoint lives; made if missing.
        plug_variant: called with the model and `recipe.variant` before the first step.
        checkpoint_every: steps between checkpoints; what a killed run loses at most.
        validate_every: steps between validations.
        stop_at: step to stop at, having written a checkpoint; the end of the recipe by default.
        compiled: whether to run the forward pass through `torch.compile` (needs a C++ compiler; a
            third faster on a CPU, the same mathematics in another order of summation).
        on_step: called with the step and its loss.
        log: receives one line per validation.

    Returns:
        The trained model, in float32, on the CPU.

    Raises:
        ValueError: the checkpoint belongs to another recipe, or the recipe needs `plug_variant`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = architecture.untrained(recipe.seed)
    if recipe.variant:
        if plug_variant is None:
            raise ValueError(
                f"recipe {recipe.name!r} trains under {recipe.variant!r}; pass plug_variant"
            )
        plug_variant(model, recipe.variant)
    steppers = optimisers(model, recipe)
    described = json.loads(json.dumps(asdict(recipe)))
    state: dict[str, Any] = {"recipe": described, "step": 0, "history": [], "seconds": 0.0}
    state["python"] = f"Python {platform.python_version()}, torch {torch.__version__}"
    if (folder / CHECKPOINT).exists():
        state = load_checkpoint(folder, model, steppers)
        if state["recipe"] != described:
            raise ValueError(
                f"the checkpoint in {folder} belongs to another recipe; "
                "choose another folder or delete the checkpoint"
            )
    text = TrainingText()
    windows = held_out_windows()
    model.train()
    forward = torch.compile(model, dynamic=False) if compiled else model
    end = min(stop_at or recipe.steps, recipe.steps)
    started = time.perf_counter() - state["seconds"]
    for step in range(state["step"], end):
        phase = recipe.phase(step)
        rows = mixture.batch(
            text,
            phase.shares,
            rows=max(1, recipe.tokens_per_step // phase.length),
            length=phase.length,
            generator=np.random.default_rng((recipe.seed, step)),
        )
        tokens = torch.from_numpy(np.stack([row.tokens for row in rows]))
        for stepper, rate in zip(steppers, (recipe.matrix_rate, recipe.rate), strict=True):
            for group in stepper.param_groups:
                group["lr"] = rate * recipe.rate_factor(step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(input_ids=tokens, use_cache=False).logits
        loss = mixed_loss(logits, rows, recipe.synthetic_weight)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        done = step + 1
        if on_step is not None:
            on_step(done, loss.item())
        if done % validate_every == 0 or done == end:
            measured = validate(model, windows[:, -phase.length :])
            state["history"].append({"step": done, "loss": loss.item(), **measured})
            log(
                f"step {done}/{recipe.steps} loss {loss.item():.3f} "
                f"bits per byte {measured['bits_per_byte']:.3f} passkey {measured['passkey']:.0%} "
                f"{time.perf_counter() - started:.0f} s"
            )
        if done % checkpoint_every == 0 or done == end:
            state |= {"step": done, "seconds": time.perf_counter() - started}
            save_checkpoint(folder, model, steppers, state)
    return model
