"""How long a row may be, and which context makes one too long."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ropewalk.llm.config_note import CONFIG_KEY
from ropewalk.llm.model_config import text_config, trained_length
from ropewalk.llm.nbce.encoded import EncodedContexts
from ropewalk.llm.nbce.shared_rotation import SharedRotation, shared_rotation
from ropewalk.llm.refusals import is_plugged

REMEDIES = (
    "split it into several contexts, plug a variant that reads further (ropewalk.llm.plug), or "
    "pass max_length=… to NBCE if the model does read so much"
)
# Names under which configurations say how many tokens a model reads.
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "n_ctx",
)


def require_count(name: str, value: object) -> int | None:
    """A positive integer or None.

    Raises:
        TypeError: something else.
        ValueError: an integer below 1.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer or None, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


@dataclass(frozen=True)
class Reach:
    """How long rows may be.

    Attributes:
        limit: how many tokens a row may have; None if there is no limit.
        shared: the rule that depends on the length; None if there is none.
    """

    limit: int | None
    shared: SharedRotation | None

    @classmethod
    def of(cls, model: Any, max_length: int | None) -> "Reach":
        """Of a model as it is now; `max_length` is the user's word."""
        return cls(limit_of(model, max_length), shared_rotation(model))

    def refuse(self, total: int, row: str, remedies: str = REMEDIES) -> None:
        """A row of too many tokens.

        Args:
            total: how many it has.
            row: what is said of it, up to how long it is.
            remedies: where it is longer than the model reads.

        Raises:
            ValueError: it is too long.
        """
        if self.shared is not None and total > self.shared.length:
            raise self.shared.refusal(row)
        if self.limit is not None and total > self.limit:
            raise ValueError(f"{row}, and a row may have {self.limit}; {remedies}")


def limit_of(model: Any, max_length: int | None) -> int | None:
    """How many tokens a row may have; None if there is no limit."""
    if max_length is not None:
        return max_length
    if is_plugged(model):
        return None
    if getattr(model.config, CONFIG_KEY, None):
        # Trained under a rule that the other entries do not know.
        try:
            return trained_length(model)
        except ValueError:
            return None
    # What a scaling of the rotation reaches counts, and not the length before it.
    config = text_config(model)
    stated = [getattr(config, name, None) for name in LENGTHS]
    return next((one for one in stated if isinstance(one, int) and one > 0), None)


def refuse_long_contexts(
    reach: Reach, base: int, names: Sequence[str], lengths: Sequence[int]
) -> None:
    """Contexts without any token, and those that are too long with what stands before them.

    Args:
        reach: how long rows may be.
        base: tokens before every context.
        names: of the contexts.
        lengths: tokens of each.

    Raises:
        ValueError: says which, its length and the remedy.
    """
    for place, (name, length) in enumerate(zip(names, lengths, strict=True)):
        if length == 0:
            raise ValueError(f"contexts[{place}] ({name!r}) has no token; leave it out")
        before = f" after {base} of the prefix" if base else ""
        reach.refuse(base + length, f"contexts[{place}] ({name!r}) is {length} tokens long{before}")


def refuse_long_rows(
    reach: Reach,
    encoded: EncodedContexts,
    questions: Sequence[str],
    tails: Sequence[int],
    max_new_tokens: int,
) -> None:
    """Questions without any token, and rows that are too long with question and answer.

    Args:
        reach: how long rows may be.
        encoded: the contexts.
        questions: as they were asked.
        tails: tokens of separator and question, of each question.
        max_new_tokens: of each answer.

    Raises:
        ValueError: says which context and question, their lengths and the remedy.
    """
    for place, tail in enumerate(tails):
        if tail == 0:
            raise ValueError(f"questions[{place}] has no token; ask something else")
    context = max(range(len(encoded)), key=lambda index: encoded.lengths[index])
    question = max(range(len(tails)), key=lambda index: tails[index])
    length, base = encoded.lengths[context], len(encoded.base)
    total = base + length + tails[question] + max_new_tokens
    row = (
        f"contexts[{context}] ({encoded.names[context]!r}) is {length} tokens long; with {base} of "
        f"the prefix, {tails[question]} of separator and questions[{question}] "
        f"({questions[question]!r}) and {max_new_tokens} new ones that makes {total}"
    )
    reach.refuse(total, row, f"ask for fewer new tokens, {REMEDIES}")
