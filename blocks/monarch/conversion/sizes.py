"""How many blocks and which rank a layer gets: one of three goals.

    rank                  the rank itself
    target_compression    the greatest rank that leaves 1/c of the parameters
    max_relative_error    the least rank that keeps the error

With nblocks="auto" several numbers of blocks are tried: by the first goal of the two, the one of
the least error is taken; by the second, the one of the fewest parameters. One block, which is a
product of two low-rank matrices, is among them.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from ropewalk.blocks.checks import require_integer, require_number
from ropewalk.blocks.monarch.conversion.fitting import Fitted
from ropewalk.blocks.monarch.shape import Blocks, MonarchShape, block_counts

AUTO_BLOCKS = (1, 2, 4, 8, 16, 32, 64)


class Fit(Protocol):
    """A layer whose nearest factors can be asked for."""

    def fitted(self, shape: MonarchShape) -> Fitted:
        """The nearest factors of a shape."""
        ...

    def least_rank(self, shape: MonarchShape, error: float) -> int | None:
        """The least rank, with these blocks, that is no farther than `error`; None if none is."""
        ...


@dataclass(frozen=True)
class Goal:
    """What is asked of every layer; exactly one of the three is not None.

    Attributes:
        nblocks: (input blocks, output blocks), a number for both, or "auto".
        rank: of the slices.
        target_compression: dense parameters over Monarch's, at least.
        max_relative_error: of a layer's weight; of its output, where that is fitted.
    """

    nblocks: Blocks | Literal["auto"]
    rank: int | None
    target_compression: float | None
    max_relative_error: float | None

    def __post_init__(self) -> None:
        name = "monarchize"
        given = [
            key
            for key in ("rank", "target_compression", "max_relative_error")
            if getattr(self, key) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "monarchize: expected exactly one of rank, target_compression and "
                f"max_relative_error, got {' and '.join(given) or 'none'}"
            )
        if isinstance(self.nblocks, str):
            if self.nblocks != "auto":
                raise ValueError(f'nblocks: expected a number, two or "auto", got {self.nblocks!r}')
            if self.rank is not None:
                raise ValueError(
                    'nblocks: "auto" chooses by target_compression or max_relative_error, got a '
                    "rank; a rank needs a number of blocks"
                )
        else:
            block_counts(self.nblocks)
        if self.rank is not None:
            require_integer(name, 1, rank=self.rank)
        if self.target_compression is not None:
            require_number(name, "a number ≥ 1", target_compression=self.target_compression)
            if not 1 <= self.target_compression < float("inf"):
                raise ValueError(
                    "target_compression: expected a finite number ≥ 1, dense parameters over "
                    f"Monarch's, got {self.target_compression}"
                )
        if self.max_relative_error is not None:
            require_number(name, "a number", max_relative_error=self.max_relative_error)
            if not 0 < self.max_relative_error < 1:
                raise ValueError(
                    "max_relative_error: expected a number between 0 and 1, got "
                    f"{self.max_relative_error}"
                )

    def __str__(self) -> str:
        goals = ("rank", "target_compression", "max_relative_error")
        given = [f"{key}={getattr(self, key):g}" for key in goals if getattr(self, key) is not None]
        return ", ".join([f"nblocks={self.nblocks!r}", *given])

    def reach(self, fit: Fit, in_features: int, out_features: int) -> Fitted | str:
        """The factors that reach it best, or why none do."""
        best: Fitted | None = None
        reasons: list[str] = []
        for blocks in AUTO_BLOCKS if self.nblocks == "auto" else (self.nblocks,):
            shape = self._shape(fit, in_features, out_features, blocks)
            if isinstance(shape, str):
                reasons.append(shape)
                continue
            found = fit.fitted(shape)
            if best is None or self._cost(found) < self._cost(best):
                best = found
        return reasons[0] if best is None else best

    def _cost(self, found: Fitted) -> tuple[float, float]:
        parameters = found.shape.parameters
        if self.max_relative_error is None:
            return found.error, parameters
        return parameters, found.error

    def _shape(
        self, fit: Fit, in_features: int, out_features: int, blocks: Blocks
    ) -> MonarchShape | str:
        """The shape with these blocks that reaches the goal, or why there is none."""
        try:
            least = MonarchShape.of(in_features, out_features, nblocks=blocks, rank=1)
            if self.rank is not None:
                return MonarchShape.of(in_features, out_features, nblocks=blocks, rank=self.rank)
        except ValueError as error:
            return str(error)
        dense = least.dense_parameters
        if self.target_compression is not None:
            allowed = dense / self.target_compression
            rank = min(int(allowed // least.parameters), least.full_rank)
            if rank == 0:
                return (
                    f"rank 1 already has {least.parameters} parameters, more than 1/"
                    f"{self.target_compression:g} of {dense}"
                )
        else:
            assert self.max_relative_error is not None  # one of the three is there
            if least.parameters >= dense:
                return f"rank 1 already has {least.parameters} parameters, and dense {dense}"
            found = fit.least_rank(least, self.max_relative_error)
            if found is None:
                return (
                    f"an error of {self.max_relative_error:g} is kept at no rank, as the factors "
                    "are rounded to the dtype of the weight"
                )
            rank = found
        shape = MonarchShape.of(in_features, out_features, nblocks=blocks, rank=rank)
        if self.target_compression is None and shape.parameters >= dense:
            return (
                f"an error of {self.max_relative_error:g} needs rank {rank}, {shape.parameters} "
                f"parameters, and dense has {dense}"
            )
        return shape
