"""Contents of run files, made up."""

from collections.abc import Callable
from typing import Any

import pytest


def build_run(
    losses: dict[str, dict[int, float]] | None = None,
    shares: dict[str, dict[int, float]] | None = None,
    *,
    spread: float = 0.01,
    trained_length: int = 512,
) -> dict[str, Any]:
    """A run whose bits per byte and shares of keys are the ones given.

    Args:
        losses: variant → length → bits per byte.
        shares: variant → length → share of keys found, the shallow depths first.
        spread: how far two of the three documents lie from the mean.
        trained_length: of the model.
    """
    log2 = 0.6931471805599453
    results: list[dict[str, Any]] = []
    lengths: set[int] = set()
    variants: list[str] = list(dict.fromkeys([*(losses or {}), *(shares or {})]))
    for variant, by_length in (losses or {}).items():
        for length, bits in by_length.items():
            lengths.add(length)
            for number, offset in enumerate((-spread, 0.0, spread)):
                results.append(
                    {
                        "variant": variant,
                        "task": "perplexity",
                        "length": length,
                        "sample": f"document {number}",
                        "document": f"<{number}>.py",
                        "bytes": 100,
                        "tokens": 50,
                        "nats": (bits + offset) * log2 * 2,
                        "seconds": 0.1,
                    }
                )
    for variant, by_length in (shares or {}).items():
        for length, share in by_length.items():
            lengths.add(length)
            for number in range(10):
                results.append(
                    {
                        "variant": variant,
                        "task": "passkey",
                        "length": length,
                        "sample": f"depth {number % 5 / 4} trial {number // 5}",
                        "depth": number % 5 / 4,
                        "trial": number // 5,
                        "correct": number < round(10 * share),
                        "written": "12345",
                        "seconds": 0.1,
                    }
                )
    tasks: dict[str, Any] = {}
    if losses:
        tasks["perplexity"] = {
            "score_tokens": 50,
            "documents": [{"name": f"<{number}>.py", "sha256": "0"} for number in range(3)],
        }
    if shares:
        tasks["passkey"] = {"depths": [0.0, 0.25, 0.5, 0.75, 1.0], "trials": 2, "seed": 0}
    return {
        "format": 1,
        "complete": True,
        "configuration": {
            "model": "a<b>",
            "models": {"a<b>": {"fingerprint": "f", "trained_length": trained_length}},
            "variants": {variant: parts_of(variant) for variant in variants},
            "lengths": sorted(lengths),
            "tasks": tasks,
        },
        "sessions": [
            {
                "started": "2026-01-02T03:04:05+00:00",
                "seconds": 90.0,
                "versions": {},
                "hardware": {},
            }
        ],
        "results": results,
    }


def parts_of(variant: str) -> dict[str, Any]:
    """The parts that a variant of this name has in a run's configuration."""
    parts: dict[str, Any] = {}
    if "rerope" in variant:
        parts["distance"] = {"name": "rerope", "window": 128}
    if "ntk" in variant:
        parts["frequency"] = {"name": "ntk-aware", "factor": 8.0}
    if "log-n" in variant:
        parts["log_n"] = {"name": "log-n", "length": 512, "clamp": True}
    return parts


@pytest.fixture
def made_up_run() -> Callable[..., dict[str, Any]]:
    """Makes a run of given figures."""
    return build_run


@pytest.fixture
def telling_run() -> dict[str, Any]:
    """RoPE explodes, NTK holds for a while, ReRoPE gains."""
    return build_run(
        {
            "rope": {512: 1.5, 1024: 1.7, 2048: 2.2},
            "ntk-aware": {512: 1.6, 1024: 1.6, 2048: 1.65},
            "rerope+log-n": {512: 1.5, 1024: 1.48, 2048: 1.45},
        },
        {
            "rope": {512: 1.0, 1024: 0.1, 2048: 0.0},
            "ntk-aware": {512: 1.0, 1024: 0.9, 2048: 0.2},
            "rerope+log-n": {512: 1.0, 1024: 1.0, 2048: 1.0},
        },
    )
