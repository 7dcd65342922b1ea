"""Two ranks with a slice of the vocabulary each compute what one process does with all of it."""

from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("parallel_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["losses", "slices", "half", "compiled", "refused"])
def test_two_ranks(two_ranks, case):
    two_ranks(WORKER, case)
