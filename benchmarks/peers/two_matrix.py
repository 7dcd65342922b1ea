"""The form that everybody ships: a full score matrix for each branch, chosen between.

    S_b = (R^{q_b} Q)(R^{k_b} K)ᵀ;   softmax(where(Δ ≥ w, S_far, S_near) + mask) V

as fast as it can be in eager torch: matrices in the input's dtype, query heads of a group as rows
of one product instead of repeated keys, the scale on the queries, and blocks of queries against
the keys up to the block's end, which halves the work of the square. A block's matrix has at most
`BLOCK_BYTES`; where the probabilities of all blocks do not fit the memory in training, they are
computed again in the backward pass. `two-matrix-compiled` puts everything between the products
through torch.compile.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.peers.rope import apply_rope, tables
from ropewalk.kernels.rotary_attention import DistanceRule

if TYPE_CHECKING:
    from benchmarks.attention import AttentionWorkload, Forward

BLOCK_BYTES = {"cuda": 2**31, "cpu": 2**26}
# Above this the probabilities that autograd keeps are recomputed instead.
KEPT_BYTES = {"cuda": 2**35, "cpu": 2**32}


def build(name: str, workload: "AttentionWorkload", rule: DistanceRule) -> "Forward":
    s = workload.shape
    groups = s.heads // s.kv_heads
    branch_tables = [tables(workload, branch) for branch in rule.branches]
    query_positions, key_positions = workload.query_positions, workload.key_positions
    itemsize = torch.empty((), dtype=s.dtype).element_size()
    row_bytes = s.batch * s.heads * s.keys * itemsize
    block = max(1, min(s.queries, BLOCK_BYTES[s.device] // row_bytes))
    edges = tuple(rule.edges)
    recompute = s.backward and row_bytes * s.queries > KEPT_BYTES[s.device]
    weigh = _weigh
    if name.endswith("compiled"):
        torch.compiler.reset()
        weigh = torch.compile(_weigh, dynamic=True)

    def attend(start: int, stop: int, value: Tensor, *turned: Tensor) -> Tensor:
        seen = s.keys - s.queries + stop
        queries, keys = turned[: len(branch_tables)], turned[len(branch_tables) :]
        scores = [
            _rows(q[:, :, start:stop], groups) @ k[:, :, :seen].mT
            for q, k in zip(queries, keys, strict=True)
        ]
        at, keys_at = query_positions[start:stop], key_positions[:seen]
        weights = weigh(scores, at, keys_at, edges, rule.unit, groups)
        return (weights @ value[:, :, :seen]).reshape(s.batch, s.heads, stop - start, s.head_dim)

    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scaled = query * s.head_dim**-0.5
        turned = [apply_rope(scaled, table) for table, _ in branch_tables]
        turned += [apply_rope(key, table) for _, table in branch_tables]
        outputs = []
        for start in range(0, s.queries, block):
            stop = min(start + block, s.queries)
            if recompute:
                part = checkpoint(attend, start, stop, value, *turned, use_reentrant=False)
            else:
                part = attend(start, stop, value, *turned)
            outputs.append(part)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)

    return forward


def _rows(query: Tensor, groups: int) -> Tensor:
    """(batch, heads, query, …) → (batch, kv_heads, groups · query, …)."""
    batch, heads, queries, head_dim = query.shape
    return query.reshape(batch, heads // groups, groups * queries, head_dim)


def _weigh(
    scores: list[Tensor],
    at: Tensor,
    keys_at: Tensor,
    edges: tuple[int, ...],
    unit: int,
    groups: int,
) -> Tensor:
    """Probabilities from one score matrix a branch."""
    away = at[:, None] // unit - keys_at // unit
    chosen = scores[0].unflatten(2, (groups, -1))
    for dots, edge in zip(scores[1:], edges, strict=True):
        chosen = torch.where(away >= edge, dots.unflatten(2, (groups, -1)), chosen)
    chosen = chosen.masked_fill(at[:, None] < keys_at, -torch.inf)
    return chosen.softmax(-1).flatten(2, 3)
