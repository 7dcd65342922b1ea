"""Training text and held-out text of the bundled models: Python's standard-library source.

The files are found through `sysconfig`, so nothing is downloaded. Which files are held out depends
on nothing but their names: a file is held out when the SHA-256 of its path, relative to the
library folder, ends in a byte below 38 (about one in seven). The split is thus the same on every
machine and for every Python version, and a held-out file is never trained on, whatever its content.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Machine-made tables and installed packages: neither is source code that somebody wrote here.
EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3"}
)
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
MACHINE_MADE = "_sysconfigdata"
HELD_OUT_BELOW = 38


@dataclass(frozen=True)
class SourceFile:
    """One file of the standard library.

    Attributes:
        name: path relative to the library folder, with forward slashes.
        text: content as UTF-8 bytes.
    """

    name: str
    text: bytes

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to the library's own test suite."""
        return any(part in TEST_FOLDERS for part in self.name.split("/"))

    @property
    def is_held_out(self) -> bool:
        """Whether the file is kept for evaluation; decided by its name alone."""
        return hashlib.sha256(self.name.encode()).digest()[-1] < HELD_OUT_BELOW


def standard_library_files(root: str | Path | None = None) -> Iterator[SourceFile]:
    """Yields the `.py` files of the standard library in the order of their names.

    Args:
        root: library folder; the running interpreter's by default.

    Raises:
        FileNotFoundError: the folder holds no Python source (some distributions strip it).
    """
    root = Path(root or sysconfig.get_path("stdlib"))
    paths = sorted(
        path
        for path in root.rglob("*.py")
        if not EXCLUDED_FOLDERS & set(path.relative_to(root).parts[:-1])
        and not path.name.startswith(MACHINE_MADE)
    )
    if not paths:
        raise FileNotFoundError(
            f"expected Python source files under {root}, found none; "
            "install the standard library's source or pass another folder"
        )
    for path in paths:
        text = path.read_bytes()
        if text:
            yield SourceFile(path.relative_to(root).as_posix(), text)


class TrainingText:
    """All training files as one byte array, from which random windows are drawn.

    Files of the test suite make up a fixed share of the windows: they are more than half of the
    source but say little about library code.
    """

    def __init__(self, root: str | Path | None = None, *, test_share: float = 0.3) -> None:
        library: list[bytes] = []
        tests: list[bytes] = []
        for file in standard_library_files(root):
            if not file.is_held_out:
                (tests if file.is_test else library).append(file.text)
        self._parts = [np.frombuffer(b"\n".join(library), dtype=np.uint8)]
        self._shares = [1.0]
        if tests:
            self._parts.append(np.frombuffer(b"\n".join(tests), dtype=np.uint8))
            self._shares = [1.0 - test_share, test_share]

    @property
    def size(self) -> int:
        """Bytes of training text."""
        return sum(part.size for part in self._parts)

    def window(self, length: int, generator: np.random.Generator) -> np.ndarray:
        """A random window of `length` bytes, as uint8."""
        part = self._parts[generator.choice(len(self._parts), p=self._shares)]
        start = int(generator.integers(0, part.size - length))
        return part[start : start + length]
