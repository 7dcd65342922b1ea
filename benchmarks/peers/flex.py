"""torch's flex_attention: one call for each branch under a mask of its pairs, merged by logsumexp.

On a GPU the call and the merge are compiled. The masks are made outside the timed region, as a
model would make them once for all layers.
"""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    create_block_mask,
    flex_attention,
)

from benchmarks.case import Unavailable
from benchmarks.peers.merge import merge
from benchmarks.peers.rope import apply_rope, tables
from ropewalk.kernels.rotary_attention import DistanceRule

if TYPE_CHECKING:
    from benchmarks.attention import AttentionWorkload, Forward

# The mask is first a dense matrix of pairs, with 64-bit temporaries.
MOST_PAIRS = 2**31


def build(name: str, workload: "AttentionWorkload", rule: DistanceRule) -> "Forward":
    s = workload.shape
    if s.device == "cpu":
        raise Unavailable("torch's compiled flex_attention gives no logsumexp on a CPU")
    if s.queries * s.keys > MOST_PAIRS:
        raise Unavailable(f"its mask is made from {s.queries * s.keys} pairs, more than fit")
    # Shapes of earlier cases must not make this one fall back to eager, a dense matrix.
    torch.compiler.reset()
    return torch.compile(forward_of(workload, rule), dynamic=False, fullgraph=True)


def forward_of(workload: "AttentionWorkload", rule: DistanceRule) -> "Forward":
    """The function before it is compiled."""
    s, masks = workload.shape, _masks(workload, rule)
    branch_tables = [tables(workload, branch) for branch in rule.branches]

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs, logsumexps = [], []
        for (query_table, key_table), mask in zip(branch_tables, masks, strict=True):
            output, auxiliary = flex_attention(
                apply_rope(query, query_table),
                apply_rope(key, key_table),
                value,
                block_mask=mask,
                enable_gqa=s.heads != s.kv_heads,
                return_aux=AuxRequest(lse=True),
            )
            outputs.append(output)
            logsumexps.append(auxiliary.lse)
        return outputs[0] if len(outputs) == 1 else merge(outputs, logsumexps)

    return forward


def _masks(workload: "AttentionWorkload", rule: DistanceRule) -> list[BlockMask]:
    s = workload.shape
    offset, unit = s.keys - s.queries, rule.unit
    lows, highs = (None, *rule.edges), (*rule.edges, None)

    def shows(
        low: int | None,
        high: int | None,
        _batch: Tensor,
        _head: Tensor,
        query: Tensor,
        key: Tensor,
    ) -> Tensor:
        away = (query + offset) // unit - key // unit
        seen = query + offset >= key
        if low is not None:
            seen = seen & (away >= low)
        return seen if high is None else seen & (away < high)

    return [
        create_block_mask(partial(shows, low, high), None, None, s.queries, s.keys, s.device)
        for low, high in zip(lows, highs, strict=True)
    ]
