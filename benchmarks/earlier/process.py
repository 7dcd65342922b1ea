"""A commit's folders in a temporary place, and a process that runs them until this one ends.

Pitfall: the checkout may be installed, and its folders must not come in where the commit's should.
The process makes its own package `ropewalk` of the commit's folders and refuses to run anything
else (serve.py).
"""

import atexit
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

import torch

from benchmarks import ROOT
from benchmarks.case import Unavailable
from benchmarks.timing import Sample
from ropewalk.kernels.rotary_attention import DistanceRule

BEFORE = "before"
"""The peer's name."""
DEFAULT = "01050174faca51086dd49cb9752f8c4ed7d54846"
"""The last commit before the kernels of rotary attention."""
FOLDERS = ("blocks", "kernels", "llm", "evals")
SERVE = Path(__file__).with_name("serve.py")
SECONDS_TO_END = 20


def full_name(commit: str) -> str:
    """The whole hash of a commit of this checkout.

    Raises:
        Unavailable: there is no git, no git checkout, or no such commit in it.
    """
    try:
        found = _git("rev-parse", "--verify", "--end-of-options", commit + "^{commit}")
    except Unavailable as reason:
        raise Unavailable(f"commit {commit!r} is not to be had here: {reason}") from None
    return found.decode().strip()


def wire(rule: DistanceRule) -> dict[str, Any]:
    """A rule as the process reads it."""
    parameters = asdict(rule) if is_dataclass(rule) and not isinstance(rule, type) else {}
    return {"kind": type(rule).__name__, "parameters": parameters}


class EarlierCommit:
    """A process with an earlier commit's code; `close` ends it and removes its files.

    Args:
        commit: any name of a commit that git knows.

    Raises:
        Unavailable: the commit is not to be had.
    """

    def __init__(self, commit: str) -> None:
        self.commit = full_name(commit)
        archive = _git("archive", "--format=tar", "--prefix=ropewalk/", self.commit, *FOLDERS)
        self._place = tempfile.TemporaryDirectory(
            prefix="ropewalk-before-", ignore_cleanup_errors=True
        )
        self.folder = Path(self._place.name)
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(self.folder, filter="data")
        threads = str(torch.get_num_threads())
        self._said = self.folder / "said.txt"
        with self._said.open("w") as said:
            self._process = process = subprocess.Popen(
                [sys.executable, "-P", str(SERVE), str(self.folder / "ropewalk"), threads],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
        self._requests, self._answers = (
            cast("IO[str]", process.stdin),
            cast("IO[str]", process.stdout),
        )
        self._files = count()

    def run(self, request: dict[str, Any]) -> tuple[Sample, dict[str, Any]]:
        """One timed run, without what it takes to load the model or draw the inputs.

        Args:
            request: as serve.py reads it.

        Returns:
            Wall and processor seconds there, and the whole answer.

        Raises:
            RuntimeError: it failed there; the message says how.
        """
        try:
            print(json.dumps(request), file=self._requests, flush=True)
            line = self._answers.readline()
        except (BrokenPipeError, ValueError):
            line = ""
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise RuntimeError(f"commit {self.commit[:7]}: {answer['error']}")
        return Sample(answer["seconds"], answer["processor"]), answer

    def new_file(self) -> Path:
        """A path in the temporary place that nobody has used."""
        return self.folder / f"output-{next(self._files)}.pt"

    def close(self) -> None:
        """Ends the process and removes the files."""
        with suppress(BrokenPipeError):
            self._requests.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._place.cleanup()

    def _last_words(self) -> str:
        said = self._said.read_text(errors="replace").strip().splitlines()
        return "its process ended: " + (said[-1] if said else "it said nothing")


@lru_cache(maxsize=1)
def earlier(commit: str) -> EarlierCommit:
    """The process of a commit, started once and ended with this one.

    Raises:
        Unavailable: the commit is not to be had.
    """
    started = EarlierCommit(commit)
    atexit.register(started.close)
    return started


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
    except OSError as error:
        raise Unavailable(f"git cannot run: {error.strerror}") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unavailable(said[-1] if said else f"git {arguments[0]} failed")
    return done.stdout
