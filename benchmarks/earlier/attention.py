"""Attention alone, with an earlier commit as one more peer.

The process draws the inputs itself from the same seed; its output is compared with the oracle of
this one's, so that other inputs would be found out.
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.attention import AttentionWorkload, Shape
from benchmarks.case import Call
from benchmarks.earlier.process import BEFORE, EarlierCommit, earlier, wire

SIZES = ("batch", "heads", "kv_heads", "queries", "keys", "head_dim")


class AttentionBesideEarlier(AttentionWorkload):
    """Inputs of one shape; peers are backends, and the commit.

    Args:
        shape: float32 on a CPU, forward only.
        commit: which one.
    """

    def __init__(self, shape: Shape, commit: str) -> None:
        if (shape.dtype, shape.device, shape.backward) != (torch.float32, "cpu", False):
            raise ValueError(f"shape: expected float32 on a CPU without gradients, got {shape}")
        super().__init__(shape)
        self.commit = commit

    def build(self, peer: str) -> Call:
        """The call that is timed; the commit's tells its own time."""
        if peer != BEFORE:
            return super().build(peer)
        process = earlier(self.commit)
        sizes = {name: getattr(self.shape, name) for name in SIZES}
        request = {"attention": {"rule": wire(self.shape.rule), **sizes}}
        self._forwards[peer] = lambda query, key, value: _output(process, request)
        return lambda: process.run(request)[0]


def _output(process: EarlierCommit, request: dict[str, Any]) -> Tensor:
    path = process.new_file()
    process.run({**request, "output": str(path)})
    output = torch.load(path, weights_only=True)
    path.unlink()
    return output
