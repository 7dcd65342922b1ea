"""Passkey retrieval over length × depth: is a number that was hidden in filler found again?

A five-digit number is stated at a given depth of a prompt of a given length and asked for at its
end (Mohtashami & Jaggi, arXiv 2305.16300). The answer counts when greedy decoding would write just
the number, which one forward pass decides (see `ropewalk.evals.tasks.answer`).

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
from ropewalk.evals.tasks.answer import answer_tokens, encode, judge
from ropewalk.evals.tasks.filling import filler_sentences, most_sentences
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
        correct, written = judge(self._tokenizer, predicted, sample.tokens[-sample.scored :])
        return {
            "correct": correct,
            "written": written,
            "prompt_tokens": len(sample.tokens) - sample.scored,
        }

    def _prompt(self, passkey: str, depth: float, length: int) -> tuple[np.ndarray, int]:
        """The longest prompt with its answer that fits into `length`, and the answer's tokens."""

        def encoded(sentences: int) -> list[int]:
            return self._prefix + encode(self._tokenizer, self._text(passkey, depth, sentences))

        shortest = len(encoded(0))
        if shortest > length:
            raise InputError(
                f"task passkey needs lengths of at least {shortest} tokens, got {length}"
            )
        _, tokens = most_sentences(encoded, length)
        scored = answer_tokens(self._tokenizer, tokens, passkey, task=self.name)
        return np.array(tokens, dtype=np.int64), scored

    def _text(self, passkey: str, depth: float, sentences: int) -> str:
        before = round(depth * sentences)
        filler = filler_sentences(sentences)
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
