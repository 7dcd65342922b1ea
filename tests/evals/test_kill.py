"""A run that is killed with SIGKILL, twice, ends with the figures of one that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ropewalk.evals.run_file import read_run, result_key
from ropewalk.evals.runner import evaluate


def start(request) -> subprocess.Popen[bytes]:
    """The same request on the command line, in a process of its own."""
    arguments = ["eval", "--model", request.model, "--out", str(request.out), "--threads", "1"]
    for variant in request.variants:
        arguments += ["--variant", variant]
    arguments += ["--length", ",".join(map(str, request.lengths))]
    arguments += ["--depth", ",".join(map(str, request.depths))]
    arguments += ["--trials", str(request.trials), "--documents", str(request.documents)]
    arguments += ["--batch-size", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "ropewalk.evals.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=request.out.parent,
    )


def results_in(folder: Path) -> list[dict]:
    """What is in the file; reading it at any moment must give a whole file."""
    path = folder / "run.json"
    return json.loads(path.read_text())["results"] if path.exists() else []


@pytest.mark.slow
def test_a_killed_run_loses_and_repeats_nothing(tiny_request, tmp_path):
    request = tiny_request(trials=12)
    survived: list[dict] = []
    for enough in (7, 60):
        process = start(request)
        deadline = time.monotonic() + 240
        while len(results_in(request.out)) < enough:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        after = results_in(request.out)
        assert len(after) >= enough
        assert after[: len(survived)] == survived
        survived = after
    assert not read_run(request.out)["complete"]
    content = evaluate(request)
    assert content["complete"]
    assert content["results"][: len(survived)] == survived
    assert len(content["sessions"]) == 3
    keys = [result_key(result) for result in content["results"]]
    assert len(set(keys)) == len(keys) == 2 * 3 * (3 + 2 * 12)
    untouched = evaluate(tiny_request(trials=12, out=tmp_path / "untouched"))
    losses = {
        result_key(result): result.get("nats", result.get("correct"))
        for result in content["results"]
    }
    for result in untouched["results"]:
        expected = result.get("nats", result.get("correct"))
        assert losses[result_key(result)] == pytest.approx(expected, rel=1e-5)
