"""Passkey retrieval over length × depth: is a number that was hidden in filler found again?

A five-digit number is stated at a given depth of a prompt of a given length and asked for at its
end (Mohtashami & Jaggi, arXiv 2305.16300). The answer counts when greedy decoding would write just
the number. One forward pass decides that: decoding greedily gives the number's tokens if and only
if, with the number itself as input, the arg max at each of its tokens is that token.

Prompts are tokenized whole, as a user's would be, and filled with as many sentences as fit, so that
a prompt with its answer is shorter than the length by less than one sentence.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ropewalk.evals.errors import InputError
from ropewalk.evals.tasks import passkey_prompt
from ropewalk.evals.tasks.task import Sample
from ropewalk.llm.tokens import prefix_tokens

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Passkey:
    """Retrieval of a number from filler.

    Args:
        tokenizer: the model's tokenizer.
        depths: where the number is stated, 0 for the beginning and 1 for the end of the filler.
        trials: prompts in each cell of length × depth, each with its own number.
        seed: decides the numbers.
    """

    name = "passkey"

    def __init__(
        self, tokenizer: Any, *, depths: Sequence[float] = DEPTHS, trials: int = 4, seed: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._prefix = prefix_tokens(tokenizer)
        self._depths = tuple(depths)
        self._trials = trials
        self._seed = seed

    def settings(self) -> dict[str, Any]:
        """Depths, trials and seed."""
        return {"depths": list(self._depths), "trials": self._trials, "seed": self._seed}

    def samples(self, length: int) -> list[Sample]:
        """All trials at all depths.

        Raises:
            InputError: the length has no room for the prompt without any filler.
        """
        made = []
        for depth in self._depths:
            for trial in range(self._trials):
                generator = random.Random(f"{self._seed}/{length}/{depth}/{trial}")
                passkey = "".join(generator.choices("0123456789", k=passkey_prompt.DIGITS))
                tokens, scored = self._prompt(passkey, depth, length)
                made.append(
                    Sample(
                        key=f"depth {depth} trial {trial}",
                        tokens=tokens,
                        scored=scored,
                        about={"depth": depth, "trial": trial, "answer": passkey},
                    )
                )
        return made

    def measure(self, sample: Sample, logits: Float[Tensor, "scored vocabulary"]) -> dict[str, Any]:
        """Whether the number is found, and what greedy decoding writes up to its first mistake."""
        predicted = logits.argmax(-1).cpu().numpy()
        wrong = np.flatnonzero(predicted != sample.tokens[-sample.scored :])
        written = (predicted if len(wrong) == 0 else predicted[: wrong[0] + 1]).tolist()
        # Models have more logits than their tokenizer has tokens; the rest cannot be decoded.
        known = [token for token in written if token < len(self._tokenizer)]
        return {
            "correct": len(wrong) == 0,
            "written": self._tokenizer.decode(known) + "\ufffd" * (len(written) - len(known)),
            "prompt_tokens": len(sample.tokens) - sample.scored,
        }

    def _prompt(self, passkey: str, depth: float, length: int) -> tuple[np.ndarray, int]:
        """The longest prompt with its answer that fits into `length`, and the answer's tokens."""

        def encoded(sentences: int) -> list[int]:
            return self._prefix + self._encode(self._text(passkey, depth, sentences))

        shortest = len(encoded(0))
        if shortest > length:
            raise InputError(
                f"task passkey needs lengths of at least {shortest} tokens, got {length}"
            )
        # A guess from the mean cost of a sentence is at most a few sentences off: step from there.
        cycle = 5 * len(passkey_prompt.FILLER_SENTENCES)
        per_sentence = (len(encoded(cycle)) - shortest) / cycle
        sentences = int((length - shortest) / per_sentence)
        tokens = encoded(sentences)
        while len(tokens) > length:
            sentences -= 1
            tokens = encoded(sentences)
        while len(longer := encoded(sentences + 1)) <= length:
            sentences, tokens = sentences + 1, longer
        return np.array(tokens, dtype=np.int64), self._answer_tokens(tokens, passkey)

    def _text(self, passkey: str, depth: float, sentences: int) -> str:
        before = round(depth * sentences)
        cycle = passkey_prompt.FILLER_SENTENCES
        filler = [cycle[index % len(cycle)] for index in range(sentences)]
        return "".join(
            [
                passkey_prompt.PREAMBLE,
                *filler[:before],
                passkey_prompt.needle(passkey),
                *filler[before:],
                passkey_prompt.QUESTION,
                passkey,
            ]
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _answer_tokens(self, tokens: list[int], passkey: str) -> int:
        """How many of the last tokens make up the number; the first may begin with the space."""
        for count in range(1, len(tokens)):
            if passkey in self._tokenizer.decode(tokens[-count:]):
                return count
        raise InputError("the tokenizer does not give digits back; task passkey cannot run with it")
