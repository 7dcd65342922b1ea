"""The folder of a run: belongs to one process at a time, and its files are replaced as wholes.

A second process is kept out by a lock on `run.lock` that the operating system drops when its owner
ends, however it ends. A file is replaced by writing the new content to a `.partial` one, flushing
it to the disk and renaming it over the old one.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from ropewalk.evals.errors import InputError, one_line

NAME = "run.json"
LOCK = "run.lock"
PARTIAL = ".partial"


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


def check_run_folder(folder: Path, name: str = NAME) -> None:
    """Checks that `folder` can become a run, or is one, so that nobody's files are overwritten.

    Args:
        folder: asked for.
        name: of the file that makes it a run.

    Raises:
        InputError: it cannot be written to, or holds other files and no run.
    """
    check_out(folder)
    if not folder.is_dir() or (folder / name).exists():
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


class RunFolder:
    """A run's folder, which no other process writes to while it is entered.

    Args:
        folder: made if missing.
        name: of the file that makes it a run; where there is none at the end, no trace is left.

    Raises:
        InputError: the folder cannot be written, is in use, or holds something else.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._lock: IO[str] | None = None
        self._made: list[Path] = []

    def __enter__(self) -> Self:
        check_run_folder(self._folder, self._name)
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
            lock(self._lock)
            self._check_lock(self._lock)
        except OSError:
            self._lock.close()
            raise InputError(
                f"{str(self._folder)!r} is in use by another process; wait for it to end"
            ) from None
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
            if not (self._folder / self._name).exists():
                (self._folder / LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()
        self._lock.close()

    def _check_lock(self, opened: IO[str]) -> None:
        """Raises OSError if the locked file was removed by its last owner, see `__exit__`."""
        if not os.path.samestat(os.fstat(opened.fileno()), (self._folder / LOCK).stat()):
            raise OSError(f"{LOCK} has been replaced")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file's new content, so that a reader, or a crash, never meets half of it.

    It has the permissions that any new file has, whatever its writer gives it (safetensors makes
    files that only their owner may read).
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    partial.touch()
    mode = partial.stat().st_mode
    yield partial
    partial.chmod(mode)
    with partial.open("rb+") as opened:
        os.fsync(opened.fileno())
    partial.replace(path)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file's content by a text; see `replacing`."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_content(
    folder: Path, name: str, *, what: str, version: int, kinds: Mapping[str, type]
) -> dict[str, Any]:
    """The content of a run's JSON file.

    Args:
        folder: of the run.
        name: of the file.
        what: the folder should hold, in words.
        version: of the file's format.
        kinds: of what must be in it.

    Raises:
        InputError: there is none, or it is not one of ours.
    """
    path = folder / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{str(folder)!r} holds no {what}: {name} is missing") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read: {one_line(error)}") from None
    if not isinstance(content, dict) or content.get("format") != version:
        raise InputError(f"{str(path)!r} was not written by this version of ropewalk")
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            raise InputError(f"{str(path)!r} is damaged: {key!r} is missing or malformed")
    return content


def lock(opened: IO[str]) -> None:
    """Takes an exclusive lock that ends with the process; raises OSError if somebody has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(opened.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
