"""The held-out text that ships with the package: library source the bundled models never saw.

The package carries the files, because Python's version decides what is in its library: figures
measured on them are then the same on every machine. They are the held-out files (see `corpus`) of
CPython 3.11.7 that are longer than 16 KiB and no tests, under the licence beside them.
"""

import json
import lzma
from dataclasses import dataclass
from pathlib import Path

from ropewalk.evals.default_model.corpus import standard_library_files

PATH = Path(__file__).parent / "text" / "held_out.jsonl.xz"
SHORTEST = 16_384 + 512


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        name: what reports call it.
        text: its content.
    """

    name: str
    text: str


def held_out_documents() -> list[Document]:
    """The shipped held-out files, each longer than 16 KiB, in the order of their names."""
    return read(PATH)


def read(path: Path) -> list[Document]:
    """Reads what `write` wrote."""
    lines = lzma.decompress(path.read_bytes()).decode().splitlines()
    return [Document(**json.loads(line)) for line in lines]


def collect(root: str | Path | None = None) -> list[Document]:
    """Takes the same documents from an installed library; how the shipped file was made.

    Args:
        root: library folder; the running interpreter's by default.
    """
    return [
        Document(file.name, file.text.decode())
        for file in standard_library_files(root)
        if file.is_held_out and not file.is_test and len(file.text) >= SHORTEST
    ]


def write(documents: list[Document], path: Path = PATH) -> None:
    """Writes `documents` in the shipped form."""
    lines = [json.dumps({"name": item.name, "text": item.text}) + "\n" for item in documents]
    path.write_bytes(lzma.compress("".join(lines).encode(), preset=9))
