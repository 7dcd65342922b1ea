"""Peak memory of one call.

On a GPU torch's allocator knows it: the peak during a call above what was held before. On a CPU the
call runs in a process of its own, and what counts is the peak of the resident memory during the
call above the resident memory before it, inputs held already. There is no warm-up, so that buffers
and threads which torch makes at its first call count too: the figure is an upper bound.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.case import Case, Unavailable

PROCESS = Path("/proc/self")
SECONDS = 600


def peak_on_gpu(call: Callable[[], object]) -> float:
    """MiB that one call takes at its peak above what is held."""
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**20


def in_own_process(
    case: Case, peer: str, suite: str, device: str, *, quick: bool
) -> dict[str, Any]:
    """Runs this file for one peer of a case and returns what it prints.

    Raises:
        Unavailable: the peer cannot take part.
        RuntimeError: the process failed; the message is the end of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.memory", suite, device, case.name, peer]
    command += ["quick"] if quick else []
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = done.stderr.strip().splitlines()
        reason = said[-1] if said else "it said nothing"
        raise RuntimeError(f"the measuring process ended with {done.returncode}: {reason}")
    found = json.loads(lines[-1])
    if "skipped" in found:
        raise Unavailable(found["skipped"])
    return found


def _resident(field: str) -> float:
    """A field of the process's status in MiB: VmRSS now, VmHWM at its peak."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise Unavailable(f"the system does not tell {field}")


def _forget_peak() -> None:
    (PROCESS / "clear_refs").write_text("5")


def measure(suite: str, device: str, name: str, peer: str, *, quick: bool) -> dict[str, Any]:
    """Peak of one call in this process, then whether its result is right."""
    from benchmarks.suites import make_suite

    (case,) = (case for case in make_suite(suite, device, quick=quick).cases if case.name == name)
    try:
        if not (PROCESS / "clear_refs").exists():
            raise Unavailable("peak memory is read from /proc, which this system lacks")
        workload = case.make()
        call = workload.build(peer)
        _forget_peak()
        before = _resident("VmRSS")
        call()
        additional = _resident("VmHWM") - before
        check = workload.check(peer)
    except (Unavailable, OSError) as error:
        return {"skipped": str(error)}
    return {"additional_mib": round(additional, 1), "check": check._asdict()}


if __name__ == "__main__":
    suite, device, name, peer, *rest = sys.argv[1:]
    print(json.dumps(measure(suite, device, name, peer, quick=bool(rest))))
