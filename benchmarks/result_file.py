"""The JSON of a run: always whole, and what an interrupted run goes on from.

    format     1
    suite, device, quick, device_name    what was asked for; a file holds one of each
    before     suite evaluation: the earlier commit, likewise
    sessions   environment and measured ceilings of each start, in order
    results    one for each case: name, session, parameters, work, floor_ms, peers
    goals      name, target, value, status (pass, miss, not measured)
    complete   whether every case of the suite has a result without an error

A peer of a result has its timing, rates and check, or a `skipped` with the reason, or an `error`;
so has a result whose inputs could not be made.
"""

import json
import os
from pathlib import Path
from typing import Any

FORMAT = 1
KEYS: dict[str, type] = {
    "suite": str,
    "device": str,
    "quick": bool,
    "device_name": str,
    "sessions": list,
    "results": list,
    "goals": list,
    "complete": bool,
}
RESULT_KEYS = {"name", "session", "kind", "parameters", "work", "floor_ms", "peers"}
TIME_KEYS = {"median_ms", "min_ms", "max_ms", "host_ms", "runs", "check", "tflop_s", "gb_s"}


class ResultError(Exception):
    """A file that cannot be read, written or continued; the message says which and why."""


def read(path: Path) -> dict[str, Any]:
    """Reads and checks a file.

    Raises:
        ResultError: it is missing or no result of this format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultError(f"{str(path)!r} does not exist") from None
    except (OSError, ValueError) as error:
        raise ResultError(f"{str(path)!r} cannot be read: {error}") from None
    problem = problem_of(content)
    if problem:
        raise ResultError(f"{str(path)!r} is no benchmark result: {problem}")
    return content


def problem_of(content: object) -> str | None:
    """What is wrong with a file's content, or None."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return f"expected an object with format {FORMAT}"
    for key, kind in KEYS.items():
        if not isinstance(content.get(key), kind):
            return f"{key!r} must be a {kind.__name__}"
    for result in content["results"]:
        if not isinstance(result, dict) or not result.keys() >= RESULT_KEYS:
            return "a result lacks one of " + ", ".join(sorted(RESULT_KEYS))
        for name, peer in result["peers"].items():
            if not _whole(peer, result["kind"]):
                return f"peer {name!r} of {result['name']!r} has neither a figure nor a reason"
    return None


def _whole(peer: dict[str, Any], kind: str) -> bool:
    if "skipped" in peer or "error" in peer:
        return True
    return "additional_mib" in peer if kind == "memory" else peer.keys() >= TIME_KEYS


def failed(result: dict[str, Any]) -> bool:
    """Whether a peer of the result ended in an error."""
    return "error" in result or any("error" in peer for peer in result["peers"].values())


class ResultFile:
    """A result that grows case by case.

    Args:
        path: the file; continued if it exists.
        identity: suite, device, quick, device_name, and what else the suite was asked for.
        fresh: whether to start over.

    Raises:
        ResultError: the file is of another run, or cannot be written.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        place = path.absolute().parent
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultError(f"{str(place)!r} cannot be made: {error.strerror}") from None
        if path.is_dir() or not os.access(place, os.W_OK):
            raise ResultError(f"{str(path)!r} cannot be written")
        empty = {"format": FORMAT, **identity, "sessions": [], "results": [], "goals": []}
        self.content: dict[str, Any] = {**empty, "complete": False}
        if not fresh and path.exists():
            there = read(path)
            for key, wanted in identity.items():
                if there.get(key) != wanted:
                    raise ResultError(
                        f"{str(path)!r} holds a run with {key} {there.get(key)!r}, this one has "
                        f"{wanted!r}; choose another --out, or --fresh to start over"
                    )
            self.content = there

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """Results by the case's name."""
        return {result["name"]: result for result in self.content["results"]}

    def begin(self, session: dict[str, Any]) -> int:
        """Adds a session and returns its number."""
        self.content["sessions"].append(session)
        return len(self.content["sessions"]) - 1

    def put(self, result: dict[str, Any]) -> None:
        """Adds a case's result, or replaces the one that failed, last in the list."""
        others = [there for there in self.content["results"] if there["name"] != result["name"]]
        self.content["results"] = [*others, result]

    def write(self) -> None:
        """Replaces the file as a whole: a reader, or a crash, never meets half of it."""
        partial = self.path.with_name(self.path.name + ".partial")
        text = json.dumps(self.content, indent=1, allow_nan=False) + "\n"
        with partial.open("w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(self.path)
