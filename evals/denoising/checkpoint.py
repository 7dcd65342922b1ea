"""Checkpoints: one safetensors file that is always whole, from which a killed training continues.

It holds weights, averaged weights and the optimiser's state by the parameter's name, the loss of
every step, and as JSON in its header the configuration, the step and the sessions. There is no
state of random numbers in it: every step seeds its own. The file is written beside the old one,
flushed to the disk and renamed over it, so a kill at any moment leaves one or the other.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ropewalk.blocks.diffusion.train import EMA
from ropewalk.evals.denoising.parallel import placed, whole
from ropewalk.evals.errors import InputError, one_line
from ropewalk.evals.run_folder import replacing

NAME = "checkpoint.safetensors"
WEIGHTS = "model.safetensors"
FORMAT = 1


@dataclass
class State:
    """Where a training stands, but for its tensors.

    Attributes:
        configuration: all that decides the training.
        losses: of every step so far.
        sessions: when, how long and on what it ran.
    """

    configuration: dict[str, Any]
    losses: list[float]
    sessions: list[dict[str, Any]]

    @property
    def step(self) -> int:
        """Steps that are done."""
        return len(self.losses)


def save(
    folder: Path,
    state: State,
    model: nn.Module,
    ema: EMA,
    optimiser: torch.optim.Optimizer,
    *,
    write: bool = True,
) -> None:
    """Writes a checkpoint.

    Args:
        folder: of the run.
        state: goes into the header.
        model: weights; sharded ones are gathered, so every rank must call this.
        ema: averaged weights.
        optimiser: of the model's parameters.
        write: whether this is the rank that writes.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = whole(parameter)
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{name}.{key}"] = whole(value)
    averages = ema.state_dict()
    for name, value in averages["shadow"].items():
        tensors[f"ema.{name}"] = whole(value)
    if not write:
        return
    tensors["losses"] = torch.tensor(state.losses, dtype=torch.float64)
    header = {
        "format": FORMAT,
        "configuration": state.configuration,
        "sessions": state.sessions,
        "ema": {key: value for key, value in averages.items() if key != "shadow"},
    }
    write_tensors(folder / NAME, tensors, header)


def restore(folder: Path, model: nn.Module, ema: EMA, optimiser: torch.optim.Optimizer) -> State:
    """Puts everything back as `save` found it; the model may be sharded otherwise.

    Raises:
        InputError: there is no checkpoint, it is damaged, or it has another shape.
    """
    tensors, header = read_tensors(folder / NAME)
    parameters = dict(model.named_parameters())
    expected = {f"{kind}.{name}": p for kind in ("model", "ema") for name, p in parameters.items()}
    check_shapes(folder / NAME, expected, tensors)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(placed(tensors[f"model.{name}"], parameter))
            start = f"optimiser.{name}."
            for key in [key for key in tensors if key.startswith(start)]:
                value = tensors[key]
                if value.shape == parameter.shape:
                    value = placed(value, parameter.detach())
                elif optimiser.defaults.get("fused"):
                    value = value.to(parameter.device)  # the count of steps, which has no shards
                optimiser.state[parameter][key.removeprefix(start)] = value
        shadow = ema.state_dict()["shadow"]
        averages = {name: placed(tensors[f"ema.{name}"], shadow[name]) for name in shadow}
        ema.load_state_dict({**header["ema"], "shadow": averages})
    return State(header["configuration"], tensors["losses"].tolist(), header["sessions"])


def read_state(folder: Path) -> State | None:
    """Where the training in a folder stands; None if it has none.

    Raises:
        InputError: the checkpoint is damaged.
    """
    if not (folder / NAME).exists():
        return None
    tensors, header = read_tensors(folder / NAME, only={"losses"})
    return State(header["configuration"], tensors["losses"].tolist(), header["sessions"])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Replaces a file by tensors and a JSON header, so that a crash never leaves half of it."""
    with replacing(path) as partial:
        save_file(dict(tensors), partial, metadata={"ropewalk": json.dumps(header)})


def read_tensors(
    path: Path, *, only: set[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a file, or only some of them, and its header.

    Raises:
        InputError: it cannot be read, is none of ours, or lacks what was asked for.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            header = json.loads((opened.metadata() or {}).get("ropewalk", "null"))
            names = set(opened.keys()) if only is None else only
            tensors = {name: opened.get_tensor(name) for name in sorted(names)}
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read: {one_line(error)}; delete it to start anew"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} was not written by this version of ropewalk")
    return tensors, header


def check_shapes(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Compares names and shapes of the model's tensors.

    Raises:
        InputError: the first that differs.
    """
    for name, tensor in expected.items():
        got = tuple(found[name].shape) if name in found else "nothing"
        if got != tuple(tensor.shape):
            raise InputError(
                f"{str(path)!r} holds a model of another shape: {name} is expected to be "
                f"{tuple(tensor.shape)}, got {got}; choose another --out or the options it "
                "was trained with"
            )
    kinds = {name.partition(".")[0] for name in expected}
    unknown = [name for name in found if name.partition(".")[0] in kinds and name not in expected]
    if unknown:
        raise InputError(
            f"{str(path)!r} holds a model of another shape: {unknown[0]} is not part of this one; "
            "choose another --out or the options it was trained with"
        )
