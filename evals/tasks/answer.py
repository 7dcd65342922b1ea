"""Whether greedy decoding would write an answer, from the logits of one forward pass over it.

Decoding greedily gives the answer's tokens if and only if, with the answer itself as input, the
arg max at each of its tokens is that token: up to the first mistake both have read the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ropewalk.evals.errors import InputError


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, without what the tokenizer would put around it."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def answer_tokens(tokenizer: Any, tokens: Sequence[int], answer: str, *, task: str) -> int:
    """How many of the last tokens make up the answer; the first may begin with the space before it.

    Raises:
        InputError: the tokenizer does not give the answer back.
    """
    for count in range(1, len(tokens)):
        if answer in tokenizer.decode(tokens[-count:]):
            return count
    raise InputError(f"the tokenizer does not give digits back; task {task} cannot run with it")


def judge(tokenizer: Any, predicted: np.ndarray, answer: np.ndarray) -> tuple[bool, str]:
    """Whether the answer is written, and what is written up to the first mistake.

    Args:
        tokenizer: decodes what is written.
        predicted: arg max at each of the answer's tokens, (scored,).
        answer: the answer's tokens, (scored,).
    """
    wrong = np.flatnonzero(predicted != answer)
    written = (predicted if len(wrong) == 0 else predicted[: wrong[0] + 1]).tolist()
    # Models have more logits than their tokenizer has tokens; the rest cannot be decoded.
    known = [token for token in written if token < len(tokenizer)]
    text = tokenizer.decode(known) + "\ufffd" * (len(written) - len(known))
    return len(wrong) == 0, text
