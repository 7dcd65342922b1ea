"""Two processes train as one does, data-parallel and sharded, and continue each other's runs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ropewalk.evals.denoising import checkpoint, results
from ropewalk.evals.denoising.data import digits
from ropewalk.evals.denoising.parallel import SHARDINGS, Ranks, check_ranks, own_rank, started
from ropewalk.evals.denoising.train import train
from ropewalk.evals.errors import InputError

ALONE = Ranks(0, 1, torch.device("cpu"))
WORKER = Path(__file__).with_name("parallel_worker.py")
HALF = 2
# Sums over the batch are added in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.slow
def test_two_ranks_see_the_losses_of_one_and_continue_each_other(tiny, tmp_path):
    data = digits()
    recipe = replace(tiny, steps=4)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.describe()))
    for folder in ("alone", *(f"single-{sharding}" for sharding in SHARDINGS)):
        (tmp_path / folder).mkdir()
    alone = train(recipe, data, tmp_path / "alone", {}, ranks=ALONE)
    for sharding in SHARDINGS:
        train(recipe, data, tmp_path / f"single-{sharding}", {}, ranks=ALONE, stop_at=HALF)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ended = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(WORKER), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr

    def losses(name: str) -> torch.Tensor:
        return torch.tensor(json.loads((tmp_path / f"{name}.json").read_text()))

    expected = torch.tensor(alone.state.losses)
    assert len(expected) == recipe.steps
    whole = checkpoint.read_tensors(tmp_path / "alone" / checkpoint.NAME)[0]
    for sharding in SHARDINGS:
        torch.testing.assert_close(losses(f"whole-{sharding}"), expected, **CLOSE)
        # Started by one process, ended by two.
        torch.testing.assert_close(losses(f"single-{sharding}"), expected, **CLOSE)
        assert losses(f"single-{sharding}")[:HALF].tolist() == pytest.approx(expected[:HALF])
        # Started by two, ended by one.
        continued = train(recipe, data, tmp_path / f"half-{sharding}", {}, ranks=ALONE)
        torch.testing.assert_close(torch.tensor(continued.state.losses), expected, **CLOSE)
        assert continued.state.sessions[0]["sharding"] == sharding
        assert continued.state.sessions[1]["sharding"] is None
        # Whole tensors with the single process's names and shapes, the same weights in them.
        path = tmp_path / f"whole-{sharding}" / checkpoint.NAME
        tensors = checkpoint.read_tensors(path)[0]
        assert tensors.keys() == whole.keys()
        for name, value in whole.items():
            if name.startswith(("model.", "ema.")):
                torch.testing.assert_close(tensors[name], value, rtol=1e-2, atol=2e-3)
    # The command: one process wrote and printed, all of them trained.
    assert ended.stdout.count("written:") == 1
    content = results.read(tmp_path / "command")
    assert content["complete"]
    (session,) = content["sessions"]
    assert (session["processes"], session["sharding"], session["until"]) == (2, "fsdp", 2)


def test_a_batch_is_cut_into_parts_that_cover_it():
    parts = [Ranks(rank, 4, torch.device("cpu"), "ddp").part(12) for rank in range(4)]
    covered = torch.cat([torch.arange(12)[part] for part in parts])
    assert covered.tolist() == list(range(12))


def test_a_batch_that_the_processes_do_not_divide_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_ranks("fsdp", 12)
    with pytest.raises(InputError, match=r"--batch-size 10 .* 4 processes; try 8"):
        check_ranks("fsdp", 10)


def test_sharding_needs_several_processes(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="torchrun --nproc-per-node"):
        check_ranks("fsdp", 12)


def test_without_torchrun_this_is_the_first_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert own_rank() == 0
    with started(None, torch.device("cpu")) as ranks:
        assert ranks == ALONE
        assert ranks.is_main
