"""Which of the kernels' proofs this process can run, and two ranks of a process group.

The proofs are CONTRIBUTING's, "How an op is proven". Triton decides once, when it is imported,
whether its kernels are interpreted. So one process interprets (`interpret`) and another one
compiles (`compile`) or launches (`gpu`).
"""

import functools
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
TO_INTERPRET = "TRITON_INTERPRET=1 python -m pytest -m interpret"


@functools.cache
def unable(marker: str) -> str | None:
    """Why tests with this marker cannot run here."""
    if marker == "interpret":
        return _interpreter_fails() if INTERPRETED else f"interpreted kernels need: {TO_INTERPRET}"
    if INTERPRETED:
        return f"{marker} tests need a process without TRITON_INTERPRET"
    if marker == "gpu" and not torch.cuda.is_available():
        return "no CUDA device"
    return None


def _interpreter_fails() -> str | None:
    """Triton 3.6 takes int() of an array of one element at every loop; NumPy ≥ 2.4 refuses that."""
    try:
        import numpy
        import triton
    except ImportError:
        return None  # the tests themselves say what they miss
    versions = [tuple(map(int, x.__version__.split(".")[:2])) for x in (triton, numpy)]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        return "the interpreter of Triton 3.6 needs NumPy < 2.4; Triton 3.7's does not"
    return None


def pytest_configure(config: pytest.Config) -> None:
    # Whoever asks for the device's tests must not read "passed" where all of them were skipped.
    reason = unable("gpu")
    if config.option.markexpr.strip() == "gpu" and reason is not None:
        raise pytest.UsageError(f"-m gpu: {reason}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Random numbers that name no generator are the test's own: the same in every run and worker,
    # and unlike those of a generator seeded with a small number.
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))
    # Skipped from here and not by a mark, so that the summary counts them in one line.
    for marker in ("interpret", "compile", "gpu"):
        if item.get_closest_marker(marker) is not None:
            reason = unable(marker)
            if reason is not None:
                pytest.skip(reason)


@pytest.fixture
def two_ranks(tmp_path: Path) -> Callable[[Path, str], None]:
    """`two_ranks(worker, case)`: runs `python worker case meeting rank` for ranks 0 and 1.

    The ranks meet at the file `meeting`, so that tests can run side by side; both must succeed.
    """

    def run(worker: Path, case: str) -> None:
        command = [sys.executable, str(worker), case, str(tmp_path / "meeting")]
        ranks = [
            subprocess.Popen(
                [*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for rank in range(2)
        ]
        try:
            printed = [rank.communicate(timeout=240)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(printed)

    return run
