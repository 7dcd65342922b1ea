"""log n scaling of queries: keeps the entropy of attention where it was as the context grows.

    q_i ← q_i · ln(i + 1) / ln L            when pretrained with it
    q_i ← q_i · max(1, ln(i + 1) / ln L)    post hoc, so that nothing changes within L

for position i and trained length L (Su Jianlin, kexue.fm/archives/8823; positions count from 0, so
query i sees n = i + 1 keys). Natural logarithms; any base gives the same ratio.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ropewalk.blocks.checks import require_integer


@dataclass(frozen=True)
class LogN:
    """The factor on each query by its position.

    Attributes:
        length: L, the length at which the model was trained; at least 2.
        clamp: whether positions within L keep their factor of 1, as a model needs that was not
            trained with log n scaling.
    """

    length: int
    clamp: bool = True
    name: ClassVar[str] = "log-n"
    paper: ClassVar[str] = "Su Jianlin, kexue.fm/archives/8823"

    def __post_init__(self) -> None:
        # ln 1 = 0 could not be divided by.
        require_integer("LogN", 2, length=self.length)

    def __call__(self, positions: Num[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Factors on the queries at `positions`.

        Args:
            positions: any shape, integer or floating. Negative ones, which padding may have,
                count as 0.

        Returns:
            Float32 (float64 for float64 positions), of the same shape.
        """
        dtype = torch.float64 if positions.dtype == torch.float64 else torch.float32
        seen = positions.to(dtype).clamp(min=0) + 1
        factors = seen.log() / math.log(self.length)
        # Not max(1, …), which rounding could put just above 1 at the last trained position.
        return factors.where(seen > self.length, 1.0) if self.clamp else factors
