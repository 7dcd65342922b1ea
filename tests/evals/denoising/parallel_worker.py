"""One of two processes that torchrun starts; run by test_parallel.

    torchrun --nproc-per-node 2 parallel_worker.py <folder>

Runs the command, sharded. Then trains a tiny denoiser under every sharding: to its middle, so that
its checkpoint can be continued by others; to its end; and from what a single process left to the
end. `<name>.json` are the losses that rank 0 saw.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ropewalk.evals import cli
from ropewalk.evals.denoising.data import digits
from ropewalk.evals.denoising.parallel import SHARDINGS, started
from ropewalk.evals.denoising.recipe import Recipe
from ropewalk.evals.denoising.train import train

HALF = 2
COMMAND = ["denoise", "--dim", "16", "--depth", "1", "--heads", "2", "--steps", "2", "--samples"]
COMMAND += ["20", "--sampling-steps", "2", "--sharding", "fsdp", "--threads", "1", "--out"]


def main(folder: Path) -> None:
    data = digits()
    recipe = Recipe(**json.loads((folder / "recipe.json").read_text()))
    with started("ddp", torch.device("cpu")) as replicated:
        assert cli.run([*COMMAND, str(folder / "command")]) == 0
        for sharding in SHARDINGS:
            ranks = replace(replicated, sharding=sharding)
            for kind, stop_at in (("half", HALF), ("whole", None), ("single", None)):
                out = folder / f"{kind}-{sharding}"
                out.mkdir(exist_ok=True)
                trained = train(recipe, data, out, {}, ranks=ranks, stop_at=stop_at)
                if ranks.is_main:
                    losses = json.dumps(trained.state.losses)
                    out.with_suffix(".json").write_text(losses)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    # Without the interpreter's end, which at times aborts in a thread of the process group.
    os._exit(0)
