"""What a suite is to reach, judged from a run's results.

A goal compares a value with a target. Where the value was not measured, because the case has not
run or a peer was skipped or failed, the goal says so with the reason; it is never a pass.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

Results = Mapping[str, dict[str, Any]]
Comparison = Literal["at least", "at most"]


class NotMeasured(Exception):  # noqa: N818 - a state, no fault
    """A goal's value is missing; the message says why."""


def judge(
    name: str,
    comparison: Comparison,
    target: float | Callable[[], float],
    value: Callable[[], float],
    unit: str = "×",
) -> dict[str, Any]:
    """A goal as the result holds it.

    Args:
        name: what is judged.
        comparison: on which side of the target it is reached.
        target: a number, or what measures it in the same run; None in the result until it has.
        value: what measures the value.
        unit: of both.
    """
    goal: dict[str, Any] = {
        "name": name,
        "comparison": comparison,
        "target": None if callable(target) else target,
        "unit": unit,
        "value": None,
    }
    try:
        wanted = target() if callable(target) else target
        if callable(target):
            goal["target"] = float(f"{wanted:.4g}")
        found = value()
    except NotMeasured as reason:
        return {**goal, "status": "not measured", "reason": str(reason)}
    reached = found >= wanted if comparison == "at least" else found <= wanted
    return {**goal, "value": float(f"{found:.4g}"), "status": "pass" if reached else "miss"}


def median_ms(results: Results, case: str, peer: str) -> float:
    """The median of a peer in a case."""
    return float(_figure(results, case, peer, "median_ms"))


def host_ms(results: Results, case: str, peer: str) -> float:
    """What the host spent, the median of a peer in a case: on a CPU all threads' processor time."""
    return float(_figure(results, case, peer, "host_ms"))


def fastest_ms(results: Results, case: str, peers: Iterable[str]) -> float:
    """The least median of several peers, those that did not run left out."""
    times, reasons = [], []
    for peer in peers:
        try:
            times.append(median_ms(results, case, peer))
        except NotMeasured as reason:
            reasons.append(str(reason))
    if not times:
        raise NotMeasured("; ".join(reasons))
    return min(times)


def additional_mib(results: Results, case: str, peer: str) -> float:
    """The peak memory of a peer in a case of kind memory."""
    return float(_figure(results, case, peer, "additional_mib"))


def additional_gb(results: Results, case: str, peer: str) -> float:
    """The same in 10⁹ bytes."""
    return additional_mib(results, case, peer) * 2**20 / 1e9


def peak_mib(results: Results, case: str, peer: str) -> float:
    """The peak memory of a peer that was timed on a GPU."""
    return float(_figure(results, case, peer, "peak_mib"))


def saved_mib(results: Results, case: str, peer: str) -> float:
    """What autograd keeps between the forward and the backward of a peer."""
    return float(_figure(results, case, peer, "saved_mib"))


def tflop_s(results: Results, case: str, peer: str) -> float:
    """The counted operations that a peer did in a second, 10¹²."""
    return float(_figure(results, case, peer, "tflop_s"))


def of_copy(results: Results, case: str, peer: str) -> float:
    """The share of the copy bandwidth that a peer reached in a case."""
    return float(_figure(results, case, peer, "of_copy"))


def _figure(results: Results, case: str, peer: str, figure: str) -> Any:
    result = results.get(case)
    if result is None:
        raise NotMeasured(f"{case} has not run")
    for reason in ("skipped", "error"):
        if reason in result:
            raise NotMeasured(f"{case}: {result[reason]}")
    found = result["peers"].get(peer)
    if found is None:
        raise NotMeasured(f"{peer} is not in {case}")
    for reason in ("skipped", "error"):
        if reason in found:
            raise NotMeasured(f"{peer} in {case}: {found[reason]}")
    return found[figure]
