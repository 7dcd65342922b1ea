"""Where the tokens of a batch lie: arrays of one size side by side, or of many sizes end to end.

A batch of one size is (batch, tokens, dim). Arrays of several sizes are packed: (1, all tokens,
dim) with `cu_seqlens`, the boundaries between them, so that nothing is padded. Each array begins
with its registers.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ropewalk.blocks.rotary import grid_coordinates


class TokenLayout(NamedTuple):
    """The tokens of a batch.

    Attributes:
        grids: the grid of each array in a packed batch; of all arrays alike otherwise.
        registers: tokens in front of each array that belong to no place.
        cu_seqlens: boundaries of packed arrays; None for a batch of one size.
    """

    grids: tuple[tuple[int, ...], ...]
    registers: int
    cu_seqlens: Int[Tensor, " boundaries"] | None

    @classmethod
    def of(
        cls,
        grids: Sequence[tuple[int, ...]],
        registers: int,
        *,
        packed: bool,
        device: torch.device,
    ) -> "TokenLayout":
        """The layout of a batch of one grid, or of packed ones."""
        if not packed:
            return cls(tuple(grids), registers, None)
        bounds = [0]
        for grid in grids:
            bounds.append(bounds[-1] + registers + math.prod(grid))
        return cls(tuple(grids), registers, torch.tensor(bounds, dtype=torch.int32, device=device))

    def coordinates(self, device: torch.device) -> Int[Tensor, "tokens axes"]:
        """The place of each token on its grid; registers are at the origin."""
        parts = []
        for grid in self.grids:
            places = grid_coordinates(*grid, device=device)
            if self.registers:
                places = torch.cat([places.new_zeros(self.registers, len(grid)), places])
            parts.append(places)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def in_place(self, device: torch.device) -> Bool[Tensor, " tokens"]:
        """Which tokens belong to a place, and are no registers."""
        parts = []
        for grid in self.grids:
            own = torch.ones(self.registers + math.prod(grid), dtype=torch.bool, device=device)
            own[: self.registers] = False
            parts.append(own)
        return torch.cat(parts)

    def scan_order(self, axis: int, device: torch.device, *, reverse: bool) -> Tensor | None:
        """The tokens in the order in which a recurrence reads them, registers first.

        Args:
            axis: the axis along which neighbours follow each other.
            device: of the result.
            reverse: from the last place to the first; the registers stay in front.

        Returns:
            Int64, an index for each token; None for the order in which they lie.
        """
        if axis == len(self.grids[0]) - 1 and not reverse:
            return None
        parts, start = [], 0
        for grid in self.grids:
            cells = math.prod(grid)
            first = start + self.registers
            places = torch.arange(first, first + cells, device=device).reshape(grid)
            places = places.movedim(axis, -1).flatten()
            parts += [
                torch.arange(start, first, device=device),
                places.flip(0) if reverse else places,
            ]
            start = first + cells
        return torch.cat(parts)
