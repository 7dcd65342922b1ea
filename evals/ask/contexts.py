"""Contexts from files and folders, by name."""

from collections.abc import Sequence
from pathlib import Path

from ropewalk.evals.documents import texts_in_folder
from ropewalk.evals.errors import InputError


def read_contexts(paths: Sequence[Path]) -> dict[str, str]:
    """Name → text. Files are contexts as they are; of a folder, every text file in it is one.

    Files are called by their names, those of a folder by their paths in it, and all of them by the
    whole path where two would be called alike. A byte order mark is no part of a text.

    Raises:
        InputError: a path that does not exist, is empty or no UTF-8 text, or is given twice, and a
            folder without any text.
    """
    found: list[tuple[str, str, str]] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"context {str(path)!r} does not exist")
        if path.is_dir():
            texts = texts_in_folder(path)
            if not any(text.strip() for _, text in texts):
                raise InputError(f"context folder {str(path)!r} has no text in it")
            found += [
                (name, (path / name).as_posix(), text) for name, text in texts if text.strip()
            ]
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"context {str(path)!r} is not UTF-8 text") from None
        except OSError as error:
            raise InputError(f"context {str(path)!r} cannot be read: {error.strerror}") from None
        if not text.strip():
            raise InputError(f"context {str(path)!r} is empty; leave it out")
        found.append((path.name, path.as_posix(), text))
    names = [name for name, _, _ in found]
    if len(set(names)) < len(names):
        names = [place for _, place, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"context {name!r} is given twice; keep one")
    return {name: text for name, (_, _, text) in zip(names, found, strict=True)}
