"""Samples at twice the trained size, by frequency rule; `denoiser.ipynb` draws what this writes.

    OMP_NUM_THREADS=1 python notebooks/denoiser_resolution.py

A denoiser of scikit-learn's digits, 8 × 8 pixels and a token for each, draws digits of 16 × 16:
`model.at_size(16, rule=…)`, the same weights with other frequencies on both axes. Averaged over
2 × 2 pixels they are judged as any samples are, beside those of the trained size. The training is a
run of `ropewalk denoise`; what was stopped continues.
"""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from ropewalk.blocks.denoiser.resolution import RULES
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.evals.denoising import load_denoiser
from ropewalk.evals.denoising.data import digits
from ropewalk.evals.denoising.job import denoise
from ropewalk.evals.denoising.metrics import measure
from ropewalk.evals.denoising.recipe import Recipe
from ropewalk.evals.denoising.request import DenoiseRequest
from ropewalk.evals.denoising.sampling import Sampling

RESULTS = Path(__file__).with_suffix(".json")
RUN = Path("runs") / "denoiser_resolution"
RECIPE = Recipe(patch_size=1, batch_size=64)
SAMPLES, STEPS, SEED = 300, 20, 5
SHOWN = 3


def judged(side: int, rule: str | None, run: Path) -> dict[str, Any]:
    """Figures of samples of a size, and some of them as levels 0 … 16."""
    data = digits()
    model, process = load_denoiser(run)
    if rule is not None:
        model = model.at_size(side, rule=rule)
    labels = torch.arange(SAMPLES) % 10
    drawn = sample(
        model,
        process,
        (SAMPLES, 1, side, side),
        steps=STEPS,
        solver="dpmpp_2m",
        condition=labels,
        generator=torch.Generator().manual_seed(SEED),
        progress=sys.stderr.isatty(),
    ).clamp(-1, 1)
    found = measure(drawn, labels, data)
    names = ("accuracy", "frechet", "train_on_synthetic", "nearest")
    levels = ((drawn[: 10 * SHOWN, 0] + 1) * 8).round().int()
    return {
        "rule": rule,
        "side": side,
        **{name: found[name] for name in names},
        "real": found["real"],
        "pictures": levels.flatten(1).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=RUN, help="folder of the training")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sampling = Sampling(samples=SAMPLES)
    denoise(DenoiseRequest(out=arguments.run, recipe=RECIPE, sampling=sampling))
    results = {
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "recipe": RECIPE.describe(),
        "rows": [judged(8, None, arguments.run)],
    }
    for rule in RULES:
        results["rows"].append(judged(16, rule, arguments.run))
        row = results["rows"][-1]
        sys.stderr.write(f"{rule}: accuracy {row['accuracy']:.3f}, Fréchet {row['frechet']:.2f}\n")
    arguments.out.write_text(json.dumps(results, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
