"""Two ranks under FSDP2 train a tied transformers model as one process does."""

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("tie_sharding_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["identity", "swap", "orthogonal"])
def test_two_ranks(form, tmp_path):
    command = [sys.executable, str(WORKER), form, str(tmp_path / "meeting")]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    try:
        printed = [rank.communicate(timeout=240)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(printed)
