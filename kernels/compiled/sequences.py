"""Where each sequence lies in flat memory: rows of a batch, or packed one after another in time."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """All sequences of a problem, in the direction in which they are gone through.

    Attributes:
        rows: (sequences,), in which row of the batch each lies.
        first: (sequences,), where along time its first step is.
        lengths: (sequences,).
        reverse: whether the first step is the last in time.
    """

    rows: np.ndarray
    first: np.ndarray
    lengths: np.ndarray
    reverse: bool = False

    @classmethod
    def of(
        cls, batch: int, time: int, cu_seqlens: Tensor | None, reverse: bool = False
    ) -> "Sequences":
        """The rows of a batch, or what cumulative lengths say."""
        if cu_seqlens is None:
            rows, first = np.arange(batch), np.zeros(batch, np.int64)
            lengths = np.full(batch, time)
        else:
            bounds = cu_seqlens.numpy().astype(np.int64)
            rows, first, lengths = np.zeros(len(bounds) - 1, np.int64), bounds[:-1], np.diff(bounds)
        if reverse:
            # An empty sequence has no last step, and none is looked at.
            first = first + np.maximum(lengths - 1, 0)
        return cls(rows.astype(np.int64), first, lengths.astype(np.int64), reverse)

    def walk(self, row_stride: int, time_stride: int) -> tuple[np.ndarray, int]:
        """Where each sequence's first step begins in memory, and how far it is to the next step."""
        begins = self.rows * row_stride + self.first * time_stride
        return begins, -time_stride if self.reverse else time_stride
