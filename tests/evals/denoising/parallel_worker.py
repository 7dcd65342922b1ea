"""One of two ranks: trains a tiny denoiser, data-parallel and sharded; run by test_parallel.

    python parallel_worker.py <folder> <file to meet at> <rank>

Each sharding stops in the middle, so that its checkpoint can be continued by others, and then goes
on to the end; `losses-<sharding>.json` are the losses that rank 0 saw.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ropewalk.evals.denoising.data import digits
from ropewalk.evals.denoising.parallel import SHARDINGS, Ranks
from ropewalk.evals.denoising.recipe import Recipe
from ropewalk.evals.denoising.train import train

HALF = 2


def main(folder: Path, meeting: str, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    data = digits()
    recipe = Recipe(**json.loads((folder / "recipe.json").read_text()))
    for sharding in SHARDINGS:
        ranks = Ranks(rank, 2, torch.device("cpu"), sharding)
        for stop_at, name in ((HALF, f"half-{sharding}"), (None, f"whole-{sharding}")):
            out = folder / name
            out.mkdir(exist_ok=True)
            trained = train(recipe, data, out, {}, ranks=ranks, stop_at=stop_at)
            if ranks.is_main:
                (folder / f"{name}.json").write_text(json.dumps(trained.state.losses))
        # From the checkpoint that a single process left.
        out = folder / f"single-{sharding}"
        trained = train(recipe, data, out, {}, ranks=ranks)
        if ranks.is_main:
            (folder / f"single-{sharding}.json").write_text(json.dumps(trained.state.losses))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
