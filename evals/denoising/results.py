"""denoising.json: what a run was, what it measured and on what; always replaced as a whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ropewalk.evals.denoising import checkpoint
from ropewalk.evals.denoising.data import ImageData
from ropewalk.evals.errors import InputError
from ropewalk.evals.run_folder import read_content, write_atomically

NAME = "denoising.json"
SAMPLES = "samples.safetensors"
FORMAT = 1
# A curve of losses is kept with at most so many points, each the mean of some steps.
POINTS = 2000
# Samples and trained pictures that are kept for the report.
KEPT = 2000
CONTENT: dict[str, type] = {"configuration": dict, "sessions": list, "complete": bool}


def read(folder: Path) -> dict[str, Any]:
    """The content of a run's file.

    Raises:
        InputError: there is none, or it is not one of ours.
    """
    return read_content(folder, NAME, what="denoiser", version=FORMAT, kinds=CONTENT)


def write(folder: Path, content: dict[str, Any]) -> None:
    """Replaces a run's file."""
    write_atomically(folder / NAME, json.dumps(content, indent=1, allow_nan=False) + "\n")


def opened(folder: Path, configuration: dict[str, Any]) -> dict[str, Any]:
    """The content of a run's file, which is written if there is none yet."""
    if (folder / NAME).exists():
        return read(folder)
    content = {
        "format": FORMAT,
        "configuration": configuration,
        "sampling": None,
        "sessions": [],
        "complete": False,
    }
    write(folder, content)
    return content


def check_configuration(folder: Path, configuration: dict[str, Any]) -> None:
    """Checks that a folder is free, or that its run and its checkpoint have this configuration.

    Raises:
        InputError: they have another one; names what differs, and how.
    """
    found = []
    if (folder / NAME).exists():
        found.append(read(folder)["configuration"])
    state = checkpoint.read_state(folder)
    if state is not None:
        found.append(state.configuration)
    for there in found:
        differing = [
            f"{key.replace('_', ' ')} {there.get(part, {}).get(key)!r} there and {value!r} here"
            for part in ("data", "recipe")
            for key, value in configuration[part].items()
            if there.get(part, {}).get(key) != value
        ]
        if differing:
            raise InputError(
                f"{str(folder)!r} holds a training with other options ({', '.join(differing)}); "
                "choose another --out, or give the options it was begun with"
            )


def thinned(losses: Sequence[float]) -> dict[str, Any]:
    """Losses as means of `every` steps, few enough to draw."""
    every = -(-len(losses) // POINTS) if losses else 1
    return {
        "every": every,
        "values": [fmean(losses[at : at + every]) for at in range(0, len(losses), every)],
    }


def write_samples(folder: Path, samples: Tensor, labels: Tensor | None, data: ImageData) -> None:
    """Keeps samples, and the trained pictures that they are compared with, as bytes."""
    tensors = {
        "samples": _bytes(samples[:KEPT]),
        "trained": _bytes(data.continuous(data.split[0][:KEPT])),
    }
    if labels is not None and data.labels is not None:
        tensors["labels"] = labels[:KEPT]
        tensors["trained_labels"] = data.labels[data.split[0][:KEPT]]
    checkpoint.write_tensors(folder / SAMPLES, tensors, {"format": checkpoint.FORMAT})


def read_samples(folder: Path) -> dict[str, Tensor]:
    """What `write_samples` kept.

    Raises:
        InputError: it cannot be read.
    """
    return checkpoint.read_tensors(folder / SAMPLES)[0]


def _bytes(pictures: Tensor) -> Tensor:
    """[−1, 1] as 0 … 255."""
    return ((pictures + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
