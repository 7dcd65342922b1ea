"""What an evaluation task is: token sequences, and what to measure at their last tokens.

A task knows nothing of models, variants or files. To add one, write a class with the four members
of `Task` and enter it in `ropewalk.evals.tasks.registry`; its results are then measured, kept and
resumed. What a report shows of them is for `ropewalk.evals.report` to say.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

Reading = Literal["joined", "apart", "windows"]
NO_TOKENS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Sample:
    """What a model reads to be scored once: a sequence, or one after each of several contexts.

    Attributes:
        key: names the sample; unique among the samples of a task at one length.
        tokens: token ids, int64, (length,); what stands after the contexts where there are any.
        scored: how many of the last tokens are scored, each predicted from all before it.
        about: what the sample's record in the run file says about it, such as its document.
        contexts: token ids of texts that stand before `tokens`, each int64, (length,).
        prefix: token ids that the model expects before any text; part of `tokens` where there are
            no contexts.
        reading: "joined": all contexts and `tokens` are one sequence. "apart": `tokens` are read
            without context, and after each context alone. "windows": as parallel context windows,
            see `ropewalk.evals.parallel_windows`; only of a model as it is.
    """

    key: str
    tokens: np.ndarray
    scored: int
    about: dict[str, Any] = field(default_factory=dict)
    contexts: tuple[np.ndarray, ...] = ()
    prefix: np.ndarray = field(default_factory=lambda: NO_TOKENS)
    reading: Reading = "joined"

    def lengths(self) -> list[int]:
        """How long each of `sequences` is."""
        around = len(self.prefix) + len(self.tokens)
        contexts = [len(context) for context in self.contexts]
        if self.reading == "joined":
            return [around + sum(contexts)]
        return [around, *(around + length for length in contexts)]

    def sequences(self) -> list[np.ndarray]:
        """The sequences that are read, in the order in which their logits are scored."""
        if self.reading == "joined":
            return [np.concatenate([self.prefix, *self.contexts, self.tokens])]
        return [
            np.concatenate([self.prefix, *context, self.tokens])
            for context in ((), *((context,) for context in self.contexts))
        ]


class Task(Protocol):
    """An evaluation task."""

    @property
    def name(self) -> str:
        """Name on the command line and in run files."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that decides the samples, as plain data; part of the run's configuration."""
        ...

    def samples(self, length: int) -> list[Sample]:
        """The samples at one length, always the same ones in the same order."""
        ...

    def measure(
        self, sample: Sample, logits: Float[Tensor, "*sequences scored vocabulary"]
    ) -> dict[str, Any]:
        """Figures of one sample, as plain data, from the logits that predict its scored tokens.

        Those of a sample that is read apart have a leading dimension: without context, and after
        each context.
        """
        ...
