"""How sequences lie in (batch, time): one to a row, or packed one after another in a single row.

Packed sequences are told by `cu_seqlens`, where each begins and the last ends. Most of a solver
does not care: it looks one step back, which at the first step of a sequence is its initial state.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where sequences begin.

    Attributes:
        batch: rows.
        time: steps in a row.
        cu_seqlens: (sequences + 1,) integers; None if each row is a sequence.
        owner: (time,) the sequence of each step, if packed.
        first: (time,) whether a step is the first of its sequence, if packed.
    """

    batch: int
    time: int
    cu_seqlens: Tensor | None = None
    owner: Tensor | None = None
    first: Tensor | None = None

    @classmethod
    def of(cls, batch: int, time: int, cu_seqlens: Tensor | None = None) -> "Layout":
        """The layout; nothing here waits for a device."""
        if cu_seqlens is None:
            return cls(batch, time)
        steps = torch.arange(time, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
        owner = torch.searchsorted(cu_seqlens, steps, right=True) - 1
        return cls(batch, time, cu_seqlens, owner, cu_seqlens[owner] == steps)

    @property
    def sequences(self) -> int:
        """How many there are."""
        return self.batch if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    def spread(self, initial: Tensor) -> Tensor:
        """To every step the initial state of its sequence: (sequences, …) to (batch, time, …)."""
        if self.owner is None:
            return initial[:, None].expand(self.batch, self.time, *initial.shape[1:])
        return initial[self.owner][None]

    def previous(self, states: Tensor, initial: Tensor | None = None) -> Tensor:
        """The states before each step: those of (batch, time, …) a step later, and the initial
        ones.

        Args:
            states: after each step.
            initial: (sequences, …); zeros if None.
        """
        if initial is None:
            initial = states.new_zeros(self.sequences, *states.shape[2:])
        if self.first is None:
            return torch.cat([initial[:, None], states[:, :-1]], dim=1)[:, : self.time]
        later = torch.cat([states[:, :1], states[:, :-1]], dim=1)
        return torch.where(self._along(self.first, states), self.spread(initial), later)

    def without_first(self, x: Tensor) -> Tensor:
        """Zeros in the place of what belongs to the first step of each sequence."""
        if self.first is None:
            return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], dim=1)
        return torch.where(self._along(self.first, x), torch.zeros_like(x), x)

    def next(self, x: Tensor) -> Tensor:
        """What belongs to the next step of the same sequence; zeros after its last."""
        later = self.without_first(x)
        return torch.cat([later[:, 1:], torch.zeros_like(x[:, :1])], dim=1)[:, : self.time]

    @staticmethod
    def _along(mask: Tensor, x: Tensor) -> Tensor:
        return mask.view(1, -1, *[1] * (x.ndim - 2))
