"""On what a run was made: device, driver, versions, threads, load, commit."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT

PACKAGES = (
    *("torch", "triton", "flash-attn", "numpy", "einops", "jaxtyping", "transformers", "diffusers"),
)
THREAD_VARIABLES = ("OMP_", "GOMP_", "KMP_", "MKL_")


def environment(device: str) -> dict[str, Any]:
    """Everything that a figure can depend on; what cannot be found out is None."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": _gpu() if device == "cuda" else _processor(),
        "platform": platform.platform(terse=True),
        "threads": torch.get_num_threads(),
        "thread_variables": {
            name: value for name, value in os.environ.items() if name.startswith(THREAD_VARIABLES)
        },
        "load_at_start": load(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
    }


def device_name(device: str) -> str:
    """The name by which two runs are on the same kind of device."""
    return (_gpu() if device == "cuda" else _processor())["name"]


def load() -> list[float] | None:
    """Mean numbers of running processes over the last 1, 5 and 15 minutes, this one included."""
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (OSError, AttributeError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    # The build tells which CUDA it is for, the package's metadata need not.
    return found | {"torch": str(torch.__version__)}


def _processor() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return {
        "name": name,
        "cores": os.cpu_count() or 1,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cache_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
    }


def _commit() -> str | None:
    """The checkout's commit, `+` after it where files differ from it."""
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if commit is None:
        return None
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return commit + ("+" if changed else "")


def _output(command: list[str]) -> str | None:
    """What a command prints, its first line; None if it cannot run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else ""
