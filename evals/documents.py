"""Documents: text cut into stretches of exactly the longest length, in tokens.

A file that is longer than the longest length gives several documents that do not overlap. When only
some are wanted, the first document of every file comes before the second of any, so that a small
number still covers as many files as possible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.evals.default_model import Document, held_out_documents
from ropewalk.evals.errors import InputError


@dataclass(frozen=True, eq=False)
class TokenDocument:
    """A stretch of text as tokens.

    Attributes:
        name: file name and number of the stretch.
        tokens: token ids, int64, (length,).
        byte_ends: for each token, the UTF-8 bytes of the text up to its end, int64, (length,).
    """

    name: str
    tokens: np.ndarray
    byte_ends: np.ndarray

    def bytes_of_last(self, count: int) -> int:
        """UTF-8 bytes of text that the last `count` tokens stand for."""
        return int(self.byte_ends[-1] - self.byte_ends[-count - 1])


def read_texts(paths: Sequence[Path]) -> list[Document]:
    """Reads text files, and the files in folders (sorted, hidden ones and binary ones left out).

    A byte order mark is no part of a text.

    Args:
        paths: files or folders; the held-out text that ships with the package if empty.

    Raises:
        InputError: a path does not exist, a named file is no UTF-8 text, or there is no text.
    """
    if not paths:
        return held_out_documents()
    documents = []
    for path in paths:
        if not path.exists():
            raise InputError(f"text {str(path)!r} does not exist")
        if path.is_dir():
            documents += [Document(name, text) for name, text in texts_in_folder(path)]
        else:
            try:
                documents.append(Document(path.name, path.read_text(encoding="utf-8-sig")))
            except UnicodeDecodeError:
                raise InputError(f"text {str(path)!r} is not UTF-8 text") from None
            except OSError as error:
                raise InputError(f"text {str(path)!r} cannot be read: {error.strerror}") from None
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise InputError(f"no text in {', '.join(map(str, paths))}; give UTF-8 text files")
    return documents


def texts_in_folder(folder: Path) -> list[tuple[str, str]]:
    """Path inside the folder and text of its files, sorted; hidden and binary ones left out."""
    return read_folder(folder)[0]


def read_folder(folder: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What is in a folder and in those inside it, sorted by path.

    Returns:
        Path inside the folder and text of the files, and path and reason of what is left out.
    """
    texts: list[tuple[str, str]] = []
    skipped: list[tuple[str, str]] = []
    for item in sorted(folder.rglob("*")):
        relative = item.relative_to(folder)
        name = relative.as_posix()
        if item.is_dir():
            if item.is_symlink():
                skipped.append((name, "a link to a folder"))
        elif any(part.startswith(".") for part in relative.parts):
            skipped.append((name, "hidden"))
        elif not item.is_file():
            skipped.append((name, "no file"))
        else:
            try:
                texts.append((name, item.read_text(encoding="utf-8-sig")))
            except UnicodeDecodeError:
                skipped.append((name, "not UTF-8 text"))
            except OSError as error:
                skipped.append((name, f"cannot be read: {error.strerror}"))
    return texts, skipped


def encode(tokenizer: Any, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of `text` without special tokens, and the bytes of text up to each token's end.

    The byte counts are exact for tokenizers that report offsets and for byte-level ones; for other
    slow tokenizers they are summed from the decoded tokens.
    """
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        characters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        widths = 1 + (characters >= 0x80) + (characters >= 0x800) + (characters >= 0x10000)
        bytes_up_to = np.concatenate([[0], np.cumsum(widths)])
        ends = np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64)
        return np.array(encoded["input_ids"], dtype=np.int64), bytes_up_to[ends]
    tokens = np.array(
        tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64
    )
    if len(tokens) == len(text.encode()):
        return tokens, np.arange(1, len(tokens) + 1)
    width = {token: len(tokenizer.decode([token]).encode()) for token in set(tokens.tolist())}
    return tokens, np.cumsum([width[token] for token in tokens.tolist()])


def cut(
    texts: Sequence[Document], tokenizer: Any, *, length: int, count: int
) -> list[TokenDocument]:
    """Cuts texts into at most `count` documents of exactly `length` tokens.

    Raises:
        InputError: no text is long enough; says how much is needed.
    """
    stretches: list[list[TokenDocument]] = []
    longest = 0
    for text in texts:
        tokens, ends = encode(tokenizer, text.text)
        longest = max(longest, len(tokens))
        stretches.append(
            [
                TokenDocument(
                    text.name if len(tokens) < 2 * length else f"{text.name}#{number + 1}",
                    tokens[start : start + length],
                    ends[start : start + length],
                )
                for number, start in enumerate(range(0, len(tokens) - length + 1, length))
            ]
        )
    depth = max(map(len, stretches))
    if depth == 0:
        raise InputError(
            f"text is shorter than the longest length: {length} tokens are needed in one file, "
            f"the longest has {longest}; give a longer text or smaller lengths"
        )
    ordered = [column[row] for row in range(depth) for column in stretches if row < len(column)]
    return ordered[:count]
