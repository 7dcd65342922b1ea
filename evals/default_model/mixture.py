"""What the bundled models are trained on: source text, and three exercises in looking back.

Text alone makes a five-million-parameter model a good guesser and a poor reader: retrieval needs
copying, and copying appears late. Three synthetic kinds of row bring it forward; in each, only what
can be known from the context is a target.

* `copy`: a random string, then the same string again (once or more).
* `pairs`: lines `key = value`, then some of the keys again, asking for their values.
* `passkey`: the passkey prompt with filler or source text around the needle.
"""

import string
from dataclasses import dataclass

import numpy as np

from ropewalk.evals.default_model.architecture import PAD_TOKEN, to_tokens
from ropewalk.evals.default_model.corpus import TrainingText
from ropewalk.evals.tasks import passkey_prompt

IGNORE = -100
KINDS = ("text", "copy", "pairs", "passkey")
SHORTEST_PROMPT = 110
WORD_CHARACTERS = np.frombuffer((string.ascii_lowercase + string.digits).encode(), dtype=np.uint8)
PRINTABLE = np.frombuffer((string.ascii_letters + string.digits + " _").encode(), dtype=np.uint8)


@dataclass(frozen=True)
class Row:
    """One training sequence.

    Attributes:
        kind: one of `KINDS`; the loss is averaged within each kind first.
        tokens: token ids, int64, of the batch's length.
        targets: the same ids, with `IGNORE` where the token cannot be known from what precedes it.
    """

    kind: str
    tokens: np.ndarray
    targets: np.ndarray


def text_row(text: TrainingText, length: int, generator: np.random.Generator) -> Row:
    """A window of source text; every token is a target."""
    tokens = to_tokens(text.window(length, generator))
    return Row("text", tokens, tokens.copy())


def copy_row(length: int, generator: np.random.Generator) -> Row:
    """A random string repeated until the row is full; the repetitions are the targets."""
    alphabet = generator.choice(PRINTABLE, size=int(generator.integers(4, PRINTABLE.size)))
    period = int(generator.integers(8, length // 2 + 1))
    phrase = generator.choice(alphabet, size=period)
    tokens = to_tokens(np.resize(phrase, length))
    targets = tokens.copy()
    targets[:period] = IGNORE
    return Row("copy", tokens, targets)


def pairs_row(length: int, generator: np.random.Generator) -> Row:
    """Lines of `key = value`, then questions; the values asked for are the targets."""

    def word(low: int, high: int) -> bytes:
        return generator.choice(WORD_CHARACTERS, size=int(generator.integers(low, high))).tobytes()

    pieces: list[tuple[bytes, bool]] = []
    pairs: dict[bytes, bytes] = {}
    room = int(length * generator.uniform(0.4, 0.8))
    while sum(len(piece) for piece, _ in pieces) < room:
        key, value = word(3, 8), word(3, 9)
        pairs[key] = value
        pieces.append((b"%s = %s\n" % (key, value), False))
    keys = list(pairs)
    filled = sum(len(piece) for piece, _ in pieces)
    while filled < length:
        key = keys[int(generator.integers(len(keys)))]
        pieces += [(b"%s = " % key, False), (b"%s\n" % pairs[key], True)]
        filled += len(key) + 3 + len(pairs[key]) + 1
    known = np.concatenate([np.full(len(piece), answer) for piece, answer in pieces])[:length]
    tokens = to_tokens(b"".join(piece for piece, _ in pieces))[:length]
    return Row("pairs", tokens, np.where(known, tokens, IGNORE))


def passkey_row(text: TrainingText | None, length: int, generator: np.random.Generator) -> Row:
    """A passkey prompt with its answer; the number's second and third mention are the targets.

    Half of the prompts have the standard filler, the others source text; without `text` all have
    the standard filler. The preamble is left out where it does not fit. The row is padded on the
    right to `length`.
    """
    passkey = "".join(map(str, generator.integers(0, 10, size=passkey_prompt.DIGITS)))
    needle = passkey_prompt.needle(passkey).encode()
    question = passkey_prompt.QUESTION.encode()
    answer = passkey.encode() + b"\n"
    used = int(generator.integers(min(SHORTEST_PROMPT, length), length + 1))
    room = max(0, used - len(needle) - len(question) - len(answer))
    preamble = passkey_prompt.PREAMBLE.encode()
    if len(preamble) > room or generator.random() < 0.2:
        preamble = b""
    room -= len(preamble)
    if generator.random() < 0.5 or room == 0 or text is None:
        hay = passkey_prompt.filler(room).encode()
    else:
        hay = text.window(room, generator).tobytes()
    depth = int(generator.integers(0, room + 1))
    if generator.random() < 0.5:  # evaluations put the needle between sentences, not inside one
        depth = hay.rfind(b". ", 0, depth) + 2 if b". " in hay[:depth] else 0
    before = preamble + hay[:depth]
    content = before + needle + hay[depth:] + question + answer
    tokens = np.full(length, PAD_TOKEN, dtype=np.int64)
    tokens[: len(content)] = to_tokens(content)[:length]
    targets = np.full(length, IGNORE, dtype=np.int64)
    second = len(before) + needle.index(passkey.encode(), len("The pass key is 12345"))
    for start, size in ((second, len(passkey)), (len(content) - len(answer), len(answer))):
        targets[start : start + size] = tokens[start : start + size]
    return Row("passkey", tokens, targets)


def batch(
    text: TrainingText,
    shares: dict[str, float],
    *,
    rows: int,
    length: int,
    generator: np.random.Generator,
) -> list[Row]:
    """Draws `rows` rows of `length` tokens, the kinds in proportion to `shares`.

    The counts are stratified, so that a batch holds each kind in proportion up to one row and the
    loss has no noise from the draw of the kinds.

    Args:
        text: source of text windows.
        shares: kind → share; they sum to 1.
        rows: sequences in the batch.
        length: tokens per sequence.
        generator: all randomness comes from it.
    """
    edges = np.cumsum([shares.get(kind, 0.0) for kind in KINDS])
    places = (np.arange(rows) + generator.random()) / rows
    made = []
    for index in np.searchsorted(edges, places * edges[-1], side="right"):
        kind = KINDS[int(index)]
        if kind == "text":
            made.append(text_row(text, length, generator))
        elif kind == "copy":
            made.append(copy_row(length, generator))
        elif kind == "pairs":
            made.append(pairs_row(length, generator))
        else:
            made.append(passkey_row(text, length, generator))
    return made
