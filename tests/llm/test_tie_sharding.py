"""Two ranks under FSDP2 train a tied transformers model as one process does."""

from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("tie_sharding_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["identity", "swap", "orthogonal"])
def test_two_ranks(two_ranks, form):
    two_ranks(WORKER, form)
