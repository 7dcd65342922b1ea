"""Trains denoisers of scikit-learn's digits; `denoiser.ipynb` draws what this writes.

    OMP_NUM_THREADS=1 python notebooks/denoiser_digits.py

First one denoiser for each process: Gaussian, Poisson flow, cold, mask and edit. Then samples of
the first one with several solvers, steps and guidances. Then one for each mixer with each
feed-forward, all with the same time on the processor, so that a cheaper block gets more steps for
it. Every denoiser is a run of `ropewalk denoise` in a folder of its own, so that what was stopped
continues.
"""

import argparse
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ropewalk.blocks.diffusion.guidance import ClassifierFree, Interval
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.evals.denoising import load_denoiser, results
from ropewalk.evals.denoising.data import digits
from ropewalk.evals.denoising.job import denoise
from ropewalk.evals.denoising.metrics import measure
from ropewalk.evals.denoising.parallel import Ranks
from ropewalk.evals.denoising.recipe import Recipe
from ropewalk.evals.denoising.request import DenoiseRequest
from ropewalk.evals.denoising.sampling import wanted_classes
from ropewalk.evals.denoising.train import seeded, train

RESULTS = Path(__file__).with_suffix(".json")
RUNS = Path("runs") / "denoiser_digits"
# Tokens are single pixels, four times as many as patches; so half the steps of half a batch.
TOKENS: dict[str, Any] = {"patch_size": 1, "batch_size": 64, "steps": 750}
PROCESSES: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "poisson-flow": {"process": "poisson-flow"},
    "cold": {"process": "cold"},
    "mask": {"process": "mask", **TOKENS},
    "edit": {"process": "edit", **TOKENS},
}
BLOCKS = [(m, f) for m in ("attention", "recurrent", "hybrid") for f in ("swiglu", "monarch")]
# Processor seconds of each combination of blocks, and the steps that are timed to divide them.
BUDGET, TIMED = 90.0, 20
SOLVERS = {"euler": "DDIM", "ancestral": "ancestral", "heun": "EDM's Heun", "dpmpp_2m": "DPM++ 2M"}
EVALUATIONS = (4, 8, 16, 32, 64)
GUIDANCES = (1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
# Guidance only where the picture's class is being decided, arXiv 2404.07724.
LOW, HIGH = 0.3, 0.8
SHOWN = 4


def seconds_of_a_step(recipe: Recipe, folder: Path) -> float:
    """Processor seconds, which other processes on the machine do not count into."""
    ticks: list[float] = []
    short = replace(recipe, steps=2 * TIMED)
    alone = Ranks(0, 1, torch.device("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    train(
        short, digits(), folder, {}, ranks=alone, stop_at=TIMED + 3,
        checkpoint_every=short.steps, on_step=lambda *_: ticks.append(time.process_time()),
    )  # fmt: skip
    (folder / "checkpoint.safetensors").unlink()
    return (ticks[-1] - ticks[2]) / (len(ticks) - 3)


def written(pictures: Tensor, labels: Tensor) -> list[str]:
    """A few pictures of each class, a letter of base 17 for each pixel."""
    letters = "0123456789abcdefg"
    chosen = [pictures[labels == label][:SHOWN] for label in range(10)]
    levels = ((torch.cat(chosen).float() / 255.0) * 16).round().int()
    return ["".join(letters[level] for level in row) for row in levels.flatten(1).tolist()]


def run(name: str, recipe: Recipe, runs: Path) -> dict[str, Any]:
    """Trains one denoiser, unless it is there, and says what became of it."""
    sys.stderr.write(f"{name}: {recipe.steps} steps\n")
    request = DenoiseRequest(out=runs / name, recipe=recipe)
    content = denoise(request)
    kept = results.read_samples(runs / name)
    values, every = content["losses"]["values"], content["losses"]["every"]
    window = max(1, len(values) // 60)
    return {
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "parameters": content["parameters"],
        "solver": content["sampling"]["solver"],
        "sampling_steps": content["sampling"]["steps"],
        "measured": content["measured"],
        "loss": content["loss"],
        "curve": [
            [(at + window) * every, round(sum(values[at : at + window]) / window, 4)]
            for at in range(0, len(values) - window + 1, window)
        ],
        "samples": written(kept["samples"][:, 0], kept["labels"]),
    }


def figures(runs: Path, guidance: Any, solver: str, steps: int) -> dict[str, float]:
    """Of samples of the Gaussian denoiser; their noise is the same for all."""
    data = digits()
    model, process = load_denoiser(runs / "gaussian")
    count = len(data.split[0])
    labels = wanted_classes(data, count)
    assert labels is not None
    drawn = sample(
        model, process, (count, 1, 8, 8), steps=steps, solver=solver, guidance=guidance,
        condition=labels, generator=seeded(0, 9),
    )  # fmt: skip
    found = measure(drawn.clamp(-1, 1), labels, data)
    return {key: round(found[key], 4) for key in ("frechet", "accuracy", "train_on_synthetic")}


def solver_curves(runs: Path) -> dict[str, Any]:
    """Solver → [evaluations of the model, figures]; Heun takes two a step but for the last."""
    found = {}
    for solver in SOLVERS:
        steps = [n // 2 if solver == "heun" else n for n in EVALUATIONS]
        found[solver] = [
            [2 * n - 1 if solver == "heun" else n, figures(runs, None, solver, n)] for n in steps
        ]
    return found


def guidance_curves(runs: Path) -> dict[str, Any]:
    """Kind of guidance → [scale, figures]."""
    kinds = {
        "always": ClassifierFree,
        "interval": lambda w: Interval(ClassifierFree(w), LOW, HIGH),
    }
    return {
        name: [
            [scale, figures(runs, make(scale - 1.0) if scale > 1 else None, "dpmpp_2m", 20)]
            for scale in GUIDANCES
        ]
        for name, make in kinds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file that is written")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where the runs are kept")
    parser.add_argument("--only", help="processes, blocks or curves; all in turn by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"processes": {}, "blocks": {}}
    if options.out.exists():
        found = json.loads(options.out.read_text())
    found["settings"] = {
        "budget": BUDGET, "interval": [LOW, HIGH],
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip

    def keep() -> None:
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")

    if options.only in (None, "processes"):
        for name, changes in PROCESSES.items():
            recipe = replace(Recipe(), **changes)
            found["processes"][name] = run(name, recipe, options.runs)
            keep()
    if options.only in (None, "curves"):
        found["solvers"] = solver_curves(options.runs)
        keep()
        found["guidance"] = guidance_curves(options.runs)
        keep()
    if options.only in (None, "blocks"):
        for mixer, feed_forward in BLOCKS:
            name = f"{mixer} {feed_forward}"
            if name in found["blocks"]:
                continue
            recipe = replace(Recipe(), mixer=mixer, feed_forward=feed_forward)
            seconds = seconds_of_a_step(recipe, options.runs / "timed")
            recipe = replace(recipe, steps=round(BUDGET / seconds))
            found["blocks"][name] = {
                **run(f"{mixer}-{feed_forward}-{recipe.steps}", recipe, options.runs),
                "seconds_of_a_step": round(seconds, 4),
            }
            keep()


if __name__ == "__main__":
    main()
