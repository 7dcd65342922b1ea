"""The file of a run: one JSON that is always whole, and that a killed run continues from.

`run.json` is replaced as a whole after every batch: the new content goes to `run.json.partial`, is
flushed to the disk and renamed over the old one, so that at any moment the file holds either the
state before a batch or the one after it. A second process is kept out by a lock on `run.lock` that
the operating system drops when its owner ends, however it ends.
"""

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import IO, Any, Self

from ropewalk.evals.environment import hardware, versions
from ropewalk.evals.errors import InputError, one_line

FORMAT = 1
NAME = "run.json"
LOCK = "run.lock"
PARTIAL = ".partial"
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
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{str(folder)!r} holds no run: {NAME} is missing") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {one_line(error)}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{str(path)!r} is not a run of this version of ropewalk")
    for key, kind in CONTENT.items():
        if not isinstance(content.get(key), kind):
            raise InputError(f"{str(path)!r} is damaged: {key!r} is missing or malformed")
    for result in content["results"]:
        if not isinstance(result, dict) or not result.keys() >= RESULT_KEYS:
            raise InputError(f"{str(path)!r} is damaged: a result lacks what identifies it")
    return content


def check_out(folder: Path) -> None:
    """Checks that a run can be written to `folder` without touching anything.

    Raises:
        InputError: the path, or a folder above it, is a file or cannot be written to.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"output {str(folder)!r} cannot be made: {str(place)!r} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"output {str(folder)!r} cannot be written: no permission in {str(place)!r}"
        )


def check_run_folder(folder: Path) -> None:
    """Checks that `folder` can become a run, or is one, so that nobody's files are overwritten.

    Raises:
        InputError: it cannot be written to, or holds other files and no run.
    """
    check_out(folder)
    if not folder.is_dir() or (folder / NAME).exists():
        return
    foreign = sorted(
        path.name
        for path in folder.iterdir()
        if path.name != LOCK and not path.name.endswith(PARTIAL)
    )
    if foreign:
        raise InputError(
            f"output {str(folder)!r} is no run and not empty ({foreign[0]!r} is in it); "
            "choose another --out"
        )


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
        self._lock: IO[str] | None = None
        self._configuration = json.loads(json.dumps(configuration))
        self._made: list[Path] = []
        self.content: dict[str, Any] = {}
        self._done: set[ResultKey] = set()

    def __enter__(self) -> Self:
        check_run_folder(self._folder)
        self._made = [
            folder for folder in (self._folder, *self._folder.parents) if not folder.exists()
        ]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / LOCK).open("a")
        except OSError as error:
            raise InputError(
                f"output {str(self._folder)!r} cannot be written: {error.strerror}"
            ) from None
        try:
            _lock(self._lock)
            self._check_lock(self._lock)
        except OSError:
            self._lock.close()
            raise InputError(
                f"{str(self._folder)!r} is in use by another process; wait for it to end"
            ) from None
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Beside a run the lock file stays. Where nothing was measured no trace does: a refusal
        # must not leave a folder behind.
        if self._lock is None:
            return
        with suppress(OSError):
            if not (self._folder / NAME).exists():
                (self._folder / LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()
        self._lock.close()

    def _check_lock(self, opened: IO[str]) -> None:
        """Raises OSError if the locked file was removed by its last owner, see `__exit__`."""
        if not os.path.samestat(os.fstat(opened.fileno()), (self._folder / LOCK).stat()):
            raise OSError(f"{LOCK} has been replaced")

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


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's content so that a reader, or a crash, never meets half of it."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    partial.replace(path)


def _lock(opened: IO[str]) -> None:
    """Takes an exclusive lock that ends with the process; raises OSError if somebody has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(opened.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
