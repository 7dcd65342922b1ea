"""One pass key in many contexts: which way of reading them finds it?

Of n contexts of equal length, all filler and none like another, one states a five-digit number; its
place among them and its depth inside it vary. The question comes after them. They are read

* apart, merged by NBCE (`ropewalk.blocks.nbce`) under every pooling, and by exact naive Bayes;
* joined into one prompt, n times as long;
* as parallel context windows (`ropewalk.evals.parallel_windows`), by models as they are.

The answer counts when greedy decoding would write just the number (see
`ropewalk.evals.tasks.answer`); for NBCE that is decoding from the merged distribution, each step
with the state of the step before it.

The wording is the pass key prompt's. The lengths at which this task is measured are n times the
length of a context.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.nbce import ContextMerge, MergeState
from ropewalk.evals.errors import InputError
from ropewalk.evals.tasks import passkey_prompt
from ropewalk.evals.tasks.answer import answer_tokens, encode, judge
from ropewalk.evals.tasks.filling import filler_sentences, most_sentences
from ropewalk.evals.tasks.passkey import DEPTHS
from ropewalk.evals.tasks.task import Reading, Sample
from ropewalk.llm.tokens import prefix_tokens

NAIVE_BAYES = "naive_bayes"
# Name of the reader of each reading that has only one.
READERS: dict[Reading, str] = {"joined": "concatenation", "windows": "parallel_windows"}
# The maximum is shown with β = 0 as well, because it fails by β and the cut together: −β ln p(T)
# raises second guesses of any context over a right answer that the unconditional row has cut off.
MERGES = {
    "min_entropy": ContextMerge(),
    "entropy_weighted": ContextMerge(pooling="entropy_weighted"),
    "max": ContextMerge(pooling="max"),
    "max_beta_0": ContextMerge(pooling="max", beta=0.0),
    "mean": ContextMerge(pooling="mean"),
}
CONTEXTS = (1, 2, 4, 8, 16, 32)


class ManyContexts:
    """Retrieval of a number from one of many contexts.

    Args:
        tokenizer: the model's tokenizer.
        contexts: how many contexts there are, ascending.
        context_length: tokens of a context at most, what the model expects first included.
        depths: where the number is stated in its context, 0 for the beginning and 1 for the end.
        trials: pass keys for each number of contexts and depth.
        seed: decides the numbers, their places and the order of the filler.
    """

    name = "nbce"

    def __init__(
        self,
        tokenizer: Any,
        *,
        contexts: Sequence[int] = CONTEXTS,
        context_length: int,
        depths: Sequence[float] = DEPTHS,
        trials: int = 4,
        seed: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._prefix = prefix_tokens(tokenizer)
        self._contexts = tuple(contexts)
        self._context_length = context_length
        self._depths = tuple(depths)
        self._trials = trials
        self._seed = seed
        self._made: dict[int, list[Sample]] = {}
        self._plain: int | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the samples, and how NBCE merges."""
        return {
            "contexts": list(self._contexts),
            "context_length": self._context_length,
            "depths": list(self._depths),
            "trials": self._trials,
            "seed": self._seed,
            "merges": {
                reader: {name: value for name, value in asdict(merge).items() if name != "backend"}
                for reader, merge in MERGES.items()
            },
        }

    def samples(self, length: int) -> list[Sample]:
        """All trials at all depths, in every reading, of `length` // context_length contexts.

        Raises:
            InputError: a context has no room for the needle without any filler.
        """
        if length not in self._made:
            self._made[length] = [
                sample
                for depth in self._depths
                for trial in range(self._trials)
                for sample in self._readings(length, depth, trial)
            ]
        return self._made[length]

    def measure(
        self, sample: Sample, logits: Float[Tensor, "*sequences scored vocabulary"]
    ) -> dict[str, Any]:
        """For each reader of the sample's reading, whether the number is found and what is written.

        Of minimum entropy also which context each of those tokens is from.
        """
        found: dict[str, bool] = {}
        written: dict[str, str] = {}
        answer = sample.tokens[-sample.scored :]
        figures: dict[str, Any] = {"correct": found, "written": written}
        if sample.reading != "apart":
            predicted = logits.argmax(-1).cpu().numpy()
            reader = READERS[sample.reading]
            found[reader], written[reader] = judge(self._tokenizer, predicted, answer)
            return figures
        merges = MERGES | {NAIVE_BAYES: ContextMerge.naive_bayes(len(sample.contexts))}
        for reader, merge in merges.items():
            predicted, chosen = _greedy(merge, logits)
            found[reader], written[reader] = judge(self._tokenizer, predicted, answer)
            if reader == "min_entropy":
                wrong = np.flatnonzero(predicted != answer)
                figures["chosen"] = chosen[: wrong[0] + 1 if len(wrong) else None]
        return figures

    def _readings(self, length: int, depth: float, trial: int) -> list[Sample]:
        """One pass key among its contexts, as a sample for each way of reading them."""
        count = length // self._context_length
        generator = random.Random(f"{self._seed}/{length}/{depth}/{trial}")
        passkey = "".join(generator.choices("0123456789", k=passkey_prompt.DIGITS))
        place = generator.randrange(count)
        needle = passkey_prompt.needle(passkey)
        contexts = tuple(
            self._context(needle if number == place else "", depth, generator)
            for number in range(count)
        )
        tokens = encode(self._tokenizer, passkey_prompt.QUESTION + passkey)
        scored = answer_tokens(self._tokenizer, tokens, passkey, task=self.name)
        about = {
            "contexts": count,
            "depth": depth,
            "trial": trial,
            "place": place,
            "answer": passkey,
        }
        readings: tuple[Reading, ...] = ("apart", "joined", "windows")
        return [
            Sample(
                key=f"depth {depth} trial {trial} {reading}",
                tokens=np.array(tokens, dtype=np.int64),
                scored=scored,
                about=about,
                contexts=contexts,
                prefix=np.array(self._prefix, dtype=np.int64),
                reading=reading,
            )
            for reading in readings
        ]

    def _context(self, needle: str, depth: float, generator: random.Random) -> np.ndarray:
        """Filler in an order of its own, with the needle at its depth, in at most the length."""
        room = self._context_length - len(self._prefix)
        shortest = len(encode(self._tokenizer, passkey_prompt.PREAMBLE + needle))
        if shortest > room:
            raise InputError(
                f"task {self.name} needs contexts of at least {shortest + len(self._prefix)} "
                f"tokens, got {self._context_length}; give a larger --context-length"
            )
        sentences = filler_sentences(self._most(needle, room))
        generator.shuffle(sentences)
        while True:
            tokens = self._with_filler(needle, depth, sentences)
            if len(tokens) <= room:
                return np.array(tokens, dtype=np.int64)
            # In another order the same sentences can have more tokens.
            sentences.pop()

    def _most(self, needle: str, room: int) -> int:
        """How many sentences fit; of contexts without the needle worked out once."""
        if needle or self._plain is None:
            count, _ = most_sentences(
                lambda count: self._with_filler(needle, 0.0, filler_sentences(count)), room
            )
            if needle:
                return count
            self._plain = count
        return self._plain

    def _with_filler(self, needle: str, depth: float, sentences: Sequence[str]) -> list[int]:
        before = round(depth * len(sentences))
        pieces = [passkey_prompt.PREAMBLE, *sentences[:before], needle, *sentences[before:]]
        return encode(self._tokenizer, "".join(pieces))


def _greedy(
    merge: ContextMerge, logits: Float[Tensor, "sequences scored vocabulary"]
) -> tuple[np.ndarray, list[int]]:
    """The token that each merged step would write, and the context it is from."""
    predicted = []
    chosen = []
    state: MergeState | None = None
    for step in range(logits.shape[1]):
        log_probs, state = merge.merge(logits[1:, step], logits[0, step], state)
        predicted.append(int(log_probs.argmax()))
        chosen.append(int(state.chosen))
    return np.array(predicted, dtype=np.int64), chosen
