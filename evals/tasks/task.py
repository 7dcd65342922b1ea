"""What an evaluation task is: token sequences, and what to measure at their last tokens.

A task knows nothing of models, variants or files. To add one, write a class with the four members
of `Task` and enter it in `ropewalk.evals.tasks.registry`; its results are then measured, kept and
resumed. What a report shows of them is for `ropewalk.evals.report` to say.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence to be read.

    Attributes:
        key: names the sample; unique among the samples of a task at one length.
        tokens: token ids, int64, (length,).
        scored: how many of the last tokens are scored, each predicted from all before it.
        about: what the sample's record in the run file says about it, such as its document.
    """

    key: str
    tokens: np.ndarray
    scored: int
    about: dict[str, Any] = field(default_factory=dict)


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

    def measure(self, sample: Sample, logits: Float[Tensor, "scored vocabulary"]) -> dict[str, Any]:
        """Figures of one sample, as plain data, from the logits that predict its scored tokens."""
        ...
