"""The file of a run: one JSON that is always whole, and that a killed run continues from.

`run.json` is replaced as a whole after every batch, so that at any moment the file holds either the
state before a batch or the one after it; `ropewalk.evals.run_folder` has how.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from ropewalk.evals.environment import hardware, versions
from ropewalk.evals.errors import InputError
from ropewalk.evals.run_folder import NAME, RunFolder, read_content, write_atomically

FORMAT = 1
ResultKey = tuple[str, str, int, str]
# What a run's file holds, besides its format, and what identifies one of its results.
CONTENT: dict[str, type] = {
    "configuration": dict,
    "sessions": list,
    "complete": bool,
    "results": list,
}
RESULT_KEYS = {"variant", "task", "length", "sample"}


def read_run(folder: Path) -> dict[str, Any]:
    """Reads a run's file.

    Raises:
        InputError: there is none, or it is not one of ours.
    """
    content = read_content(folder, NAME, what="run", version=FORMAT, kinds=CONTENT)
    for result in content["results"]:
        if not isinstance(result, dict) or not result.keys() >= RESULT_KEYS:
            raise InputError(
                f"{str(folder / NAME)!r} is damaged: a result lacks what identifies it"
            )
    return content


def check_configuration(folder: Path, configuration: dict[str, Any]) -> None:
    """Checks that `folder` is free or holds a run with this very configuration.

    Raises:
        InputError: it holds another run; names what differs.
    """
    if not (folder / NAME).exists():
        return
    there = read_run(folder)["configuration"]
    # Through JSON, so that tuples equal the lists that come back from a file.
    configuration = json.loads(json.dumps(configuration))
    if there == configuration:
        return
    differing = sorted(
        key
        for key in there.keys() | configuration.keys()
        if there.get(key) != configuration.get(key)
    )
    raise InputError(
        f"{str(folder)!r} holds a run with another configuration (different: "
        f"{', '.join(differing)}); choose another --out or delete that folder"
    )


class RunFile:
    """An open run: the only one that writes to its folder while it is.

    Args:
        folder: where the run lives; made if missing.
        configuration: everything that decides the results.

    Attributes:
        content: what the file holds.

    Raises:
        InputError: the folder cannot be written, is in use, or holds another run.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        self._folder = folder
        self._locked = RunFolder(folder, NAME)
        self._configuration = json.loads(json.dumps(configuration))
        self.content: dict[str, Any] = {}
        self._done: set[ResultKey] = set()

    def __enter__(self) -> Self:
        self._locked.__enter__()
        try:
            self._open()
        except BaseException as error:
            self._locked.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._locked.__exit__(kind, error, trace)

    def _open(self) -> None:
        check_configuration(self._folder, self._configuration)
        if (self._folder / NAME).exists():
            self.content = read_run(self._folder)
        else:
            self.content = {
                "format": FORMAT,
                "configuration": self._configuration,
                "sessions": [],
                "complete": False,
                "results": [],
            }
        self._done = {result_key(result) for result in self.content["results"]}
        self._started = perf_counter()
        self._session = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "versions": versions(),
            "hardware": hardware(),
        }

    def has(self, key: ResultKey) -> bool:
        """Whether the result is there already."""
        return key in self._done

    def add(self, results: list[dict[str, Any]]) -> None:
        """Adds results and writes the file.

        Raises:
            ValueError: a result is there already.
        """
        for result in results:
            key = result_key(result)
            if key in self._done:
                raise ValueError(f"result {key} is in the run already")
            self._done.add(key)
            self.content["results"].append(result)
        self._write()

    def complete(self) -> None:
        """Marks the run as complete."""
        if not self.content["complete"]:
            self.content["complete"] = True
            self._write()

    def _write(self) -> None:
        sessions = self.content["sessions"]
        if not sessions or sessions[-1] is not self._session:
            sessions.append(self._session)
        self._session["seconds"] = round(perf_counter() - self._started, 3)
        write_atomically(
            self._folder / NAME, json.dumps(self.content, indent=1, allow_nan=False) + "\n"
        )


def result_key(result: dict[str, Any]) -> ResultKey:
    """What identifies a result: variant, task, length and sample."""
    return result["variant"], result["task"], result["length"], result["sample"]
