"""Samples become batches that fit memory, and batches logits.

A batch holds consecutive samples that are read alike: in the same way, with sequences of the same
lengths. Its size is chosen to fit memory and halved whenever memory does run out; what was learned
about a length is kept.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.evals import memory
from ropewalk.evals.errors import EvaluationError
from ropewalk.evals.logits import scored_logits
from ropewalk.evals.parallel_windows import parallel_window_logits
from ropewalk.evals.tasks.task import Sample


class Batches:
    """Reads samples, as many at once as fit.

    Args:
        dtype: of the model's weights.
        device: where the model is.
        most: the user's bound on the sequences that are read at once, if any.
    """

    def __init__(self, *, dtype: torch.dtype, device: torch.device, most: int | None) -> None:
        self._dtype = dtype
        self._device = device
        self._most = most
        # Length of sequences → how many fit, where that was found out the hard way.
        self._learned: dict[int, int] = {}

    def of(self, model: Any, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
        """Consecutive samples that are read alike, as many at once as fit, at least one."""
        position = 0
        while position < len(samples):
            first = samples[position]
            lengths = first.lengths()
            size = max(1, self._size(model, max(lengths), first.scored) // len(lengths))
            candidates = samples[position : position + size]
            batch = list(takewhile(partial(_read_alike, first), candidates))
            yield batch
            position += len(batch)

    def logits(
        self, model: Any, batch: Sequence[Sample]
    ) -> Iterator[Float[Tensor, "*sequences scored vocabulary"]]:
        """Logits of each sample's scored tokens, with the leading dimension of `Task.measure`.

        Raises:
            EvaluationError: memory does not suffice for a single sequence.
        """
        if batch[0].reading == "apart":
            yield from self._apart(model, batch)
        elif batch[0].reading == "windows":
            for sample in batch:
                yield self._windows(model, sample)
        else:
            sequences = [sequence for sample in batch for sequence in sample.sequences()]
            scored = max(sample.scored for sample in batch)
            rows = self._rows(model, sequences, scored)
            for sample, row in zip(batch, rows, strict=True):
                yield row[-sample.scored :]

    def _apart(
        self, model: Any, batch: Sequence[Sample]
    ) -> Iterator[Float[Tensor, "sequences scored vocabulary"]]:
        """Sequences of equal length are read together, whichever sample they are of."""
        sequences = [sequence for sample in batch for sequence in sample.sequences()]
        scored = max(sample.scored for sample in batch)
        by_length: dict[int, list[int]] = {}
        for index, sequence in enumerate(sequences):
            by_length.setdefault(len(sequence), []).append(index)
        rows: dict[int, Tensor] = {}
        for group in by_length.values():
            read = self._rows(model, [sequences[index] for index in group], scored)
            rows |= zip(group, read, strict=True)
        start = 0
        for sample in batch:
            stop = start + len(sample.contexts) + 1
            yield torch.stack([rows.pop(index)[-sample.scored :] for index in range(start, stop)])
            start = stop

    def _windows(self, model: Any, sample: Sample) -> Float[Tensor, "scored vocabulary"]:
        length = max(sample.lengths())
        size = min(self._size(model, length, sample.scored), len(sample.contexts))
        while True:
            try:
                return parallel_window_logits(model, sample, at_once=size, device=self._device)
            except Exception as error:
                size = self._fewer(error, size, length)

    def _rows(
        self, model: Any, sequences: Sequence[np.ndarray], scored: int
    ) -> Iterator[Float[Tensor, "scored vocabulary"]]:
        """Logits of sequences of equal length, in parts that fit."""
        length = len(sequences[0])
        size = self._size(model, length, scored)
        start = 0
        while start < len(sequences):
            size = min(size, len(sequences) - start)
            tokens = torch.from_numpy(np.stack(sequences[start : start + size]))
            try:
                part = scored_logits(model, tokens.to(self._device), scored)
            except Exception as error:
                size = self._fewer(error, size, length)
                continue
            yield from part
            start += size

    def _size(self, model: Any, length: int, scored: int) -> int:
        size = memory.batch_size(
            model.config, length=length, scored=scored, dtype=self._dtype, device=self._device
        )
        return min(size, self._most or size, self._learned.get(length, size))

    def _fewer(self, error: Exception, size: int, length: int) -> int:
        """Half of what did not fit; raises anything that is no lack of memory."""
        if not memory.is_out_of_memory(error):
            raise error
        if size == 1:
            raise EvaluationError(
                f"out of memory on one sequence of {length} tokens; what was measured is kept, use "
                "smaller lengths or a larger device"
            ) from error
        self._learned[length] = size // 2
        return size // 2


def _read_alike(one: Sample, other: Sample) -> bool:
    return one.reading == other.reading and one.lengths() == other.lengths()
