"""Two ranks under FSDP2 train a tied head as one process does."""

from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("sharding_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["trained", "made on meta", "loaded", "not announced"])
def test_two_ranks(two_ranks, case):
    two_ranks(WORKER, case)
