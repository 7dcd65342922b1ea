"""What a rotary embedding and a distance rule look like to the attention op: data, no names.

A *distance rule* says which relative position the score of a query-key pair sees. Every rule this
library knows is a short list of *branches*, each of which rotates queries and keys to positions of
its own, and a rule that says which branch a pair takes:

    branch(i, j) = number of `edges` e with floor(i / unit) − floor(j / unit) ≥ e

Plain RoPE has one branch and no edge. ReRoPE, Leaky ReRoPE and Self-Extend have two branches and
one edge, the window, at unit 1. Dual chunk attention has three branches and the edges (1, 2) at a
unit of one chunk. The score of the pair is then

    score(i, j) = ⟨R^{q_b(i)} q_i , R^{k_b(j)} k_j⟩,   b = branch(i, j),

so that the relative position which the score sees is q_b(i) − k_b(j). The branch index grows with
the distance, so that for one query the keys of a branch are contiguous; kernels rely on that.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ropewalk.kernels.shapes import Layout

__all__ = ["Branch", "DistanceRule", "Layout", "PositionMap", "QueryScale", "Rotary"]


MAP_NUMBERS = 5
"""How many numbers say a position map."""


class PositionMap(NamedTuple):
    """An index-to-position map: ((index mod `modulus`) / `divisor` + `offset`), at most `maximum`.

    Attributes:
        divisor: the index is divided by it; infinity maps every index to `offset`.
        offset: added after the division.
        floor: whether the division rounds down, as grouped positions do.
        modulus: the index is first taken modulo this; no modulus if None.
        maximum: upper bound of the result; none if None.

    A named tuple, as `Branch` is, because compilers can trace the construction of one.
    """

    divisor: float = 1.0
    offset: float = 0.0
    floor: bool = False
    modulus: int | None = None
    maximum: float | None = None

    def __call__(self, index: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Positions of `index`, any shape, integer or float, as `dtype`."""
        position = index.to(dtype)
        if self.modulus is not None:
            position = torch.remainder(position, self.modulus)
        if self.divisor != 1.0:
            position = position / self.divisor
            position = position.floor() if self.floor else position
        if self.offset != 0.0:
            position = position + self.offset
        return position if self.maximum is None else position.clamp(max=self.maximum)

    def numbers(self) -> list[float]:
        """The fields as `MAP_NUMBERS` numbers; modulus 0 and an infinite maximum for none."""
        return [
            float(self.divisor),
            float(self.offset),
            float(self.floor),
            0.0 if self.modulus is None else float(self.modulus),
            math.inf if self.maximum is None else float(self.maximum),
        ]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "PositionMap":
        """The map that has these `numbers`."""
        divisor, offset, floor, modulus, maximum = numbers
        return cls(
            divisor,
            offset,
            floor != 0,
            None if modulus == 0 else int(modulus),
            None if maximum == math.inf else maximum,
        )


class Branch(NamedTuple):
    """One way to place queries and keys: the position map of each."""

    query: PositionMap = PositionMap()
    key: PositionMap = PositionMap()


def map_numbers(branches: Sequence[Branch]) -> list[float]:
    """All position maps as numbers, branch by branch, the queries' before the keys'.

    An operator takes numbers and no objects, and a kernel that knows them needs no tensor of
    positions where these are the default ones.
    """
    return [n for branch in branches for places in branch for n in places.numbers()]


def maps_of(numbers: Sequence[float]) -> tuple[Branch, ...]:
    """The branches whose `map_numbers` these are."""
    maps = [
        PositionMap.of(numbers[start : start + MAP_NUMBERS])
        for start in range(0, len(numbers), MAP_NUMBERS)
    ]
    return tuple(map(Branch, maps[::2], maps[1::2]))


def key_copies(branches: Sequence[Branch]) -> list[int]:
    """Of each branch, which rotated copy of the keys it takes, numbered by first use.

    Branches that place keys alike share a copy, and −1 stands for position 0 throughout, where keys
    stay as they are: ReRoPE's far branch never rotates a key.
    """
    maps: list[PositionMap] = []
    copies: list[int] = []
    for branch in branches:
        if branch.key.divisor == math.inf and branch.key.offset == 0:
            copies.append(-1)
            continue
        if branch.key not in maps:
            maps.append(branch.key)
        copies.append(maps.index(branch.key))
    return copies


@runtime_checkable
class DistanceRule(Protocol):
    """Which relative position the score of a pair sees; see the module's docstring.

    Attributes:
        branches: position maps, nearest branch first.
        edges: ascending thresholds on the block distance; one fewer than `branches`.
        unit: block size in which distance is measured, 1 for token distance.
    """

    @property
    def branches(self) -> Sequence[Branch]: ...

    @property
    def edges(self) -> Sequence[int]: ...

    @property
    def unit(self) -> int: ...


@runtime_checkable
class Rotary(Protocol):
    """A rotary embedding as the op needs it.

    Attributes:
        rotary_dim: leading dimensions of a head that are rotated; even.
        layout: `half` pairs dimension i with i + rotary_dim/2, `interleaved` pairs 2i with 2i + 1.
    """

    @property
    def rotary_dim(self) -> int: ...

    @property
    def layout(self) -> Layout: ...

    def inverse_frequencies(self, length: int | Tensor | None = None) -> Tensor:
        """Float32 (rotary_dim / 2); `length` matters to rules that depend on the context's."""
        ...

    def attention_factor(self, length: int | Tensor | None = None) -> float | Tensor:
        """Factor on cos and sin, so that the logits get its square."""
        ...


@runtime_checkable
class QueryScale(Protocol):
    """A factor on each query by its position, such as log n scaling."""

    def __call__(self, positions: Tensor) -> Tensor:
        """Float32 factors, of the shape of `positions`."""
        ...
