"""Measures how a language model bears compression; `monarch.ipynb` draws what this writes.

    OMP_NUM_THREADS=1 python notebooks/monarch_compression.py

The feed-forward layers of the default model are replaced, at exactly equal numbers of parameters,
by low-rank factors (SVD: Monarch with one block) and by Monarch with four blocks, each projected by
weight and by what the layers read (`calibration`), and then trained for 200 steps. The loss is that
of the held-out text that ships with the package; calibration and training read the training text,
which has none of those files. Each cell is written when it is done; a run that was stopped goes on.
"""

import argparse
import copy
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.monarch.conversion import MonarchReport, monarchize
from ropewalk.evals.default_model import held_out_documents
from ropewalk.evals.default_model.architecture import to_tokens
from ropewalk.evals.default_model.corpus import TrainingText
from ropewalk.evals.models import open_model

RESULTS = Path(__file__).with_suffix(".json")
METHODS: dict[str, dict[str, Any]] = {
    "Monarch, calibrated": {"nblocks": 4, "calibrated": True},
    "SVD, calibrated": {"nblocks": 1, "calibrated": True},
    "Monarch": {"nblocks": 4},
    "SVD": {"nblocks": 1},
}
# Blocks × rank: a layer has that many times (in + out) parameters.
WIDTHS = (92, 44, 20)
FEED_FORWARD = "*.mlp.*"
STEPS, WARMUP, ROWS, LENGTH, RATE = 200, 20, 8, 256, 5e-4
CALIBRATION_WINDOWS = SCORED_WINDOWS = 64
WINDOW = 512


def default_model() -> nn.Module:
    """The default language model in float32."""
    return open_model("default").load(dtype=torch.float32, device=torch.device("cpu"))


def training_windows(text: TrainingText, count: int, length: int, *, seed: Any) -> Tensor:
    """Windows of the text that the model was trained on, (count, length)."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(
        np.stack([to_tokens(text.window(length, generator)) for _ in range(count)])
    )


def scored_windows(count: int = SCORED_WINDOWS) -> Tensor:
    """Windows of the held-out text, evenly spread, (count, WINDOW)."""
    tokens = [to_tokens(document.text.encode()) for document in held_out_documents()]
    everything = np.concatenate([each[: len(each) // WINDOW * WINDOW] for each in tokens])
    windows = torch.from_numpy(everything).view(-1, WINDOW)
    return windows[torch.linspace(0, len(windows) - 1, count).long()]


@torch.no_grad()
def losses(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean loss of each window, nats per byte."""
    model.eval()
    found = []
    for part in windows.split(8):
        logits = model(input_ids=part).logits[:, :-1]
        found.append(functional.cross_entropy(logits.mT, part[:, 1:], reduction="none").mean(1))
    return torch.cat(found)


def compressed(
    model: nn.Module, text: TrainingText, width: int, nblocks: int, calibrated: bool = False
) -> tuple[nn.Module, MonarchReport]:
    """A copy with fewer parameters in its feed-forward layers."""
    model = copy.deepcopy(model)
    calibration = None
    if calibrated:
        windows = training_windows(text, CALIBRATION_WINDOWS, WINDOW, seed=1)
        calibration = windows.split(8)
    report = monarchize(
        model,
        match=FEED_FORWARD,
        nblocks=nblocks,
        rank=width // nblocks,
        calibration=calibration,
        progress=False,
    )
    return model, report


def fine_tune(model: nn.Module, text: TrainingText, steps: int = STEPS) -> None:
    """Trains all parameters; every call sees the same batches."""
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for step in range(steps):
        rate = RATE * min((step + 1) / WARMUP, (steps - step) / (steps - WARMUP), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate
        tokens = training_windows(text, ROWS, LENGTH, seed=(2, step))
        logits = model(input_ids=tokens).logits[:, :-1]
        functional.cross_entropy(logits.mT, tokens[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def sizes(report: MonarchReport) -> dict[str, Any]:
    """What a report says of the whole."""
    errors = [layer.relative_error for layer in report.converted if layer.relative_error]
    return {
        "compression": report.compression,
        "model_parameters": report.model_parameters_after,
        "mean_relative_error": sum(errors) / len(errors),
    }


def measure(model: nn.Module, text: TrainingText, windows: Tensor) -> dict[str, Any]:
    """Loss before and after training, by window."""
    started = time.perf_counter()
    projected = losses(model, windows)
    fine_tune(model, text)
    tuned = losses(model, windows)
    return {
        "loss": projected.mean().item(),
        "loss_tuned": tuned.mean().item(),
        "windows": [round(loss, 5) for loss in projected.tolist()],
        "windows_tuned": [round(loss, 5) for loss in tuned.tolist()],
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    out = parser.parse_args().out
    settings = {
        "match": FEED_FORWARD,
        "steps": STEPS,
        "rows": ROWS,
        "length": LENGTH,
        "rate": RATE,
        "calibration_windows": CALIBRATION_WINDOWS,
        "scored_windows": SCORED_WINDOWS,
        "window": WINDOW,
    }
    results: dict[str, Any] = {"settings": settings, "cells": {}}
    if out.exists():
        results = json.loads(out.read_text())
        if results["settings"] != settings:
            raise SystemExit(f"{out} was measured with other settings; move it away")
    results["environment"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    model, text, windows = default_model(), TrainingText(), scored_windows()
    cells = [("dense", 0)] + [(method, width) for method in METHODS for width in WIDTHS]
    for method, width in cells:
        name = f"{method}, {width}" if width else method
        if name in results["cells"]:
            continue
        if not width:
            cell = measure(copy.deepcopy(model), text, windows)
        else:
            smaller, report = compressed(model, text, width, **METHODS[method])
            cell = {"method": method, "width": width, **sizes(report)}
            cell |= measure(smaller, text, windows)
        results["cells"][name] = cell
        temporary = out.with_suffix(".partial")
        temporary.write_text(json.dumps(results) + "\n")
        temporary.replace(out)
        sys.stdout.write(f"{name}: {cell['loss']:.4f} → {cell['loss_tuned']:.4f}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
