"""Contexts from files and folders, by name, and what was left out of folders."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ropewalk.evals.documents import read_folder
from ropewalk.evals.errors import InputError

# More files than this that were left out are counted instead of listed.
MOST_LINES = 10


@dataclass(frozen=True)
class Contexts:
    """What is asked about.

    Attributes:
        texts: name → text.
        digests: name → SHA-256 of the file.
        skipped: path and reason of every file that a folder has and that is no context.
    """

    texts: dict[str, str]
    digests: dict[str, str]
    skipped: Sequence[tuple[str, str]]

    def notes(self) -> list[str]:
        """A line for each file that was left out, or one that counts them."""
        if len(self.skipped) <= MOST_LINES:
            return [f"skipped {path!r}: {reason}" for path, reason in self.skipped]
        reasons = Counter(reason for _, reason in self.skipped).most_common()
        counted = ", ".join(f"{count} {reason}" for reason, count in reasons)
        return [f"skipped {len(self.skipped)} files: {counted}"]


def read_contexts(paths: Sequence[Path]) -> Contexts:
    """Files are contexts as they are; of a folder, every text file in it is one.

    Files are called by their names, those of a folder by their paths in it, and all of them by the
    whole path where two would be called alike. A byte order mark is no part of a text.

    Raises:
        InputError: a path that does not exist, is empty or no UTF-8 text, or is given twice, and a
            folder without any text.
    """
    found: list[tuple[str, Path, str]] = []
    skipped: list[tuple[str, str]] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"context {str(path)!r} does not exist")
        if path.is_dir():
            texts, left_out = read_folder(path)
            if not any(text.strip() for _, text in texts):
                raise InputError(f"context folder {str(path)!r} has no text in it")
            found += [(name, path / name, text) for name, text in texts if text.strip()]
            left_out += [(name, "empty") for name, text in texts if not text.strip()]
            skipped += [((path / name).as_posix(), reason) for name, reason in sorted(left_out)]
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"context {str(path)!r} is not UTF-8 text") from None
        except OSError as error:
            raise InputError(f"context {str(path)!r} cannot be read: {error.strerror}") from None
        if not text.strip():
            raise InputError(f"context {str(path)!r} is empty; leave it out")
        found.append((path.name, path, text))
    names = [name for name, _, _ in found]
    if len(set(names)) < len(names):
        names = [place.as_posix() for _, place, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"context {name!r} is given twice; keep one")
    return Contexts(
        texts={name: text for name, (_, _, text) in zip(names, found, strict=True)},
        digests={
            name: hashlib.sha256(place.read_bytes()).hexdigest()
            for name, (_, place, _) in zip(names, found, strict=True)
        },
        skipped=skipped,
    )
