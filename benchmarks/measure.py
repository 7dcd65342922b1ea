"""One case: each peer is built, checked and warmed up, then all are timed in turn.

A peer that cannot take part is skipped with the reason; one that fails, or whose result is not the
oracle's, is an error and is not timed. The others go on.
"""

import gc
import math
import warnings
from typing import Any

import torch

from benchmarks import memory
from benchmarks.case import Call, Case, MoreFigures, Unavailable, Workload
from benchmarks.roofline import Ceilings, floor_ms, rates
from benchmarks.timing import interleaved

DIGITS = 5


class DeviceLost(Exception):  # noqa: N818 - named for what happened
    """The device reported an error after which this process cannot use it."""


def measure(
    case: Case, suite: str, device: str, measured: Ceilings, *, seconds: float, quick: bool
) -> dict[str, Any]:
    """The result of a case, without its session.

    Raises:
        DeviceLost: the process must end; the case has no result.
    """
    peers: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {
        "name": case.name,
        "kind": case.kind,
        "figure": case.figure,
        "x": case.x,
        "parameters": dict(case.parameters),
        "work": case.work._asdict(),
        "floor_ms": round_figures(floor_ms(case.work, measured)),
        "peers": peers,
    }
    if case.kind == "memory":
        for peer in case.peers:
            peers[peer] = _guarded(
                lambda peer=peer: memory.in_own_process(case, peer, suite, device, quick=quick)
            )
            _judge(peers[peer])
        return result
    least = 2 if quick else case.rounds
    result |= _guarded(lambda: _time(case, device, peers, seconds=seconds, least=least))
    for figures in peers.values():
        if "median_ms" in figures:
            figures |= round_figures(rates(case.work, figures["median_ms"], measured))
    _free()
    return result


def _time(
    case: Case, device: str, peers: dict[str, dict[str, Any]], *, seconds: float, least: int
) -> dict[str, Any]:
    """Fills `peers`; what it returns is nothing, as an attempt without an error."""
    workload = case.make()
    calls: dict[str, Call] = {}
    for peer in case.peers:
        peers[peer] = _guarded(lambda peer=peer: _prepare(workload, peer, device, calls))
        _judge(peers[peer])
        if "error" in peers[peer]:
            calls.pop(peer, None)
    timed = _guarded(lambda: dict(interleaved(calls, device, seconds=seconds, least=least)))
    for peer in calls:
        figures = timed[peer]._asdict() if peer in timed else timed
        peers[peer] = round_figures(figures) | peers[peer]
    return {}


def _prepare(workload: Workload, peer: str, device: str, calls: dict[str, Call]) -> dict[str, Any]:
    call = workload.build(peer)
    call()  # compiles what is to be compiled
    figures: dict[str, Any] = {"check": workload.check(peer)._asdict()}
    if device == "cuda":
        figures["peak_mib"] = round(memory.peak_on_gpu(call), 1)
    if isinstance(workload, MoreFigures):
        figures |= workload.figures(peer)
    calls[peer] = call
    return figures


def _judge(peer: dict[str, Any]) -> None:
    """Adds an error where a check failed; a NaN fails and is written as null."""
    check = peer.get("check")
    if check is None:
        return
    error, tolerance, values = check["error"], check["tolerance"], check.get("values")
    if not error <= tolerance:
        peer["error"] = f"differs from the oracle by {error:.3g}, more than {tolerance:g}"
    error = float(f"{error:.3g}")
    peer["check"] = {"error": error if math.isfinite(error) else None, "tolerance": tolerance}
    if values is not None:
        finite = [round(value, 9) if math.isfinite(value) else None for value in values]
        peer["check"]["values"] = finite


def _guarded(attempt) -> dict[str, Any]:
    """What the attempt returns, or why it did not."""
    try:
        with warnings.catch_warnings():
            # Compilers warn of their own interfaces; the op's results are checked.
            warnings.simplefilter("ignore")
            return attempt()
    except Unavailable as reason:
        return {"skipped": str(reason)}
    except torch.OutOfMemoryError as error:
        _free()
        return {"skipped": f"out of memory: {_first_line(error)}"}
    except Exception as error:  # a peer may fail in any way; the others go on
        _free()
        text = f"{type(error).__name__}: {_first_line(error)}"
        if "not enough memory" in text:
            return {"skipped": f"out of memory: {text}"}
        if _lost(text):
            raise DeviceLost(text) from error
        return {"error": text}


def _lost(text: str) -> bool:
    fatal = ("illegal memory access", "misaligned address", "unspecified launch failure")
    return "CUDA" in text and any(reason in text for reason in fatal)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else ""


def round_figures(figures: Any) -> Any:
    """Numbers to `DIGITS` digits that count: more are noise."""
    if isinstance(figures, dict):
        return {key: round_figures(value) for key, value in figures.items()}
    return float(f"{figures:.{DIGITS}g}") if isinstance(figures, float) else figures
