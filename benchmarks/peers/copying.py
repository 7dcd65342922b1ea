"""The device's own copy, beside decoding: what reading a cache of this size costs at the least.

A copy of the keys reads and writes as many bytes as decoding reads of keys and values.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.attention import Forward
from ropewalk.kernels.rotary_attention import DistanceRule

if TYPE_CHECKING:
    from benchmarks.attention import AttentionWorkload


def build(_method: str, workload: "AttentionWorkload", _rule: DistanceRule) -> Forward:
    """A copy of the keys into memory that is held already."""
    target = torch.empty_like(workload.key)

    def copy(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return target.copy_(key)

    return copy
