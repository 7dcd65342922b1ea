"""Rotary attention in torch, by blocks of queries: the oracle, and the path that CPUs take.

    s_ij = ⟨R^{q_b(i)} q_i, R^{k_b(j)} k_j⟩ · scale · λ_i,   b = branch(i, j)
    s_ij ← cap · tanh(s_ij / cap), then the mask is added
    o_i  = Σ_j exp(s_ij − lse_i) v_j,   lse_i = log(Σ_j exp(s_ij) + exp(sink))

λ is the query factor (log n scaling). Softmax and gradients follow FlashAttention (arXiv
2205.14135, 2307.08691): running maximum and sum forward; backward recomputes the probabilities
from lse and uses ds = p ⊙ (dp − Δ), Δ_i = ⟨do_i, o_i⟩ − dlse_i. Both walk the runs of schedule.py,
so that memory is linear in the sequence length and every pair costs one dot product, except near
a branch's edge.

Half-precision inputs are computed in float32 and float64 ones in float64; the rounding to the
input's dtype is the last line of `forward` and `backward`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ropewalk.kernels.rotary import rotate
from ropewalk.kernels.rotary_attention.protocols import Layout
from ropewalk.kernels.rotary_attention.schedule import (
    Run,
    Visibility,
    branch_of_pairs,
    hidden_pairs,
    key_runs,
    mask_rows,
)

QUERY_BLOCK = 128
TILE_ELEMENTS = 2**20
MINIMUM_TILE = 64


@dataclass(frozen=True)
class Problem:
    """The op's tensors and constants after validation, in their widest meaning.

    Attributes:
        query: (batch, heads, query, head_dim), unrotated.
        key: (batch, kv_heads, key, head_dim), unrotated.
        value: (batch, kv_heads, key, value_dim).
        inverse_frequencies: (rotary_dim / 2); empty if nothing is rotated.
        attention_factor: scalar tensor on cos and sin.
        query_angles: positions of queries, (branches, 1 | batch, query).
        key_angles: positions of keys, (branches, 1 | batch, key).
        query_factor: factor on each query, (1 | batch, query).
        sinks: one logit per head without a value, (heads,).
        layout: which dimensions pair up.
        scale: factor on the scores.
        softcap: bound on the scores.
        visibility: what is seen, and through which branch.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    inverse_frequencies: Tensor
    attention_factor: Tensor
    query_angles: Tensor
    key_angles: Tensor
    query_factor: Tensor | None
    sinks: Tensor | None
    layout: Layout
    scale: float
    softcap: float | None
    visibility: Visibility

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def turn(self, x: Tensor, positions: Tensor, *, back: bool = False) -> Tensor:
        """R^positions x, or its transpose; positions (1 | batch, sequence)."""
        # Position 0 turns nothing; ReRoPE's far keys are all there, so that they are never copied.
        if self.inverse_frequencies.numel() == 0 or not (
            positions.any() or bool(self.attention_factor != 1)
        ):
            return x
        angle = positions.to(self.dtype)[:, None, :, None] * self.inverse_frequencies.to(self.dtype)
        factor = self.attention_factor.to(self.dtype)
        cos, sin = angle.cos() * factor, angle.sin() * factor
        return rotate(x, cos, -sin if back else sin, layout=self.layout)


class _Blocks:
    """The schedule of a problem, its rotated queries and keys, and the scores of a run."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        p = problem
        self.batch, self.heads, self.queries, _ = p.query.shape
        self.kv_heads = p.key.shape[1]
        self.groups = self.heads // max(self.kv_heads, 1)
        block = min(QUERY_BLOCK, max(self.queries, 1))
        self.starts = range(0, self.queries, block)
        self.block = block
        self.runs = [key_runs(p.visibility, i, self.stop(i)) for i in self.starts]
        self.tile = max(MINIMUM_TILE, TILE_ELEMENTS // max(1, self.batch * self.heads * block))
        self.scaled = p.query.to(p.dtype) * self.query_scale()
        self.queries_turned = [p.turn(self.scaled, angles) for angles in p.query_angles]
        self.value = p.value.to(p.dtype)
        self.spans: list[slice] = []
        self.keys_turned: list[Tensor] = []
        for branch, angles in enumerate(p.key_angles):
            # Only the keys that meet a query in this branch: in decoding, the window's.
            span = self._span(branch)
            keys = p.key[:, :, span].to(p.dtype)
            self.spans.append(span)
            self.keys_turned.append(p.turn(keys, angles[:, span]))

    def query_scale(self) -> Tensor | float:
        factor = self.problem.query_factor
        if factor is None:
            return self.problem.scale
        return factor.to(self.problem.dtype)[:, None, :, None] * self.problem.scale

    def _span(self, branch: int) -> slice:
        runs = [r for runs in self.runs for r in runs if r.nearest <= branch <= r.farthest]
        if not runs:
            return slice(0, 0)
        return slice(min(r.start for r in runs), max(r.stop for r in runs))

    def stop(self, start: int) -> int:
        return min(start + self.block, self.queries)

    def rows(self, x: Tensor, start: int) -> Tensor:
        """(batch, heads, query, …) → (batch, kv_heads, groups · block, …): GQA by matmul rows."""
        x = x[:, :, start : self.stop(start)]
        return x.reshape(self.batch, self.kv_heads, self.groups * x.shape[2], *x.shape[3:])

    def put_rows(self, x: Tensor, start: int, rows: Tensor) -> None:
        """The inverse of `rows`, into a tensor of all queries."""
        target = x[:, :, start : self.stop(start)]
        target.copy_(rows.view(target.shape))

    def keys(self, branch: int, run: Run) -> Tensor:
        offset = self.spans[branch].start
        return self.keys_turned[branch][:, :, run.start - offset : run.stop - offset]

    def tiles(self, index: int) -> Iterator[Run]:
        """The runs of a block of queries, cut so that a tile of scores fits the cache."""
        for run in self.runs[index]:
            for start in range(run.start, run.stop, self.tile):
                yield run._replace(start=start, stop=min(start + self.tile, run.stop))

    def branches(self, start: int, run: Run) -> list[tuple[int, Tensor | None]]:
        """Branches of a run, each with the pairs it owns (None for all of them)."""
        if run.nearest == run.farthest:
            return [(run.nearest, None)]
        pairs = branch_of_pairs(self.problem.visibility, start, self.stop(start), run)
        return [(b, (pairs == b)[:, None, None]) for b in range(run.nearest, run.farthest + 1)]

    def grouped(self, rows: Tensor) -> Tensor:
        """View of a tile of scores as (batch, kv_heads, groups, query, key)."""
        return rows.view(*rows.shape[:2], self.groups, -1, rows.shape[-1])

    def scores(
        self, start: int, run: Run, owners: list[tuple[int, Tensor | None]]
    ) -> tuple[Tensor, Tensor | None]:
        """Scores of a tile after cap and mask, and the cap's derivative if there is a cap."""
        p = self.problem
        scores = torch.empty(0)
        for branch, pairs in owners:
            dots = self.rows(self.queries_turned[branch], start) @ self.keys(branch, run).mT
            if pairs is None or branch == run.nearest:
                scores = dots
            else:
                torch.where(
                    pairs, self.grouped(dots), self.grouped(scores), out=self.grouped(scores)
                )
        slope = None
        if p.softcap is not None:
            bounded = torch.tanh(scores / p.softcap)
            scores, slope = bounded * p.softcap, 1 - bounded.square()
        if run.masked:
            self._mask(scores, start, run)
        return scores, slope

    def _mask(self, scores: Tensor, start: int, run: Run) -> None:
        visibility, stop = self.problem.visibility, self.stop(start)
        grouped = self.grouped(scores)
        if visibility.attention_mask is not None:
            mask = mask_rows(visibility.attention_mask, start, stop)[..., run.start : run.stop]
            heads = (self.kv_heads, self.groups) if mask.shape[1] != 1 else (1, 1)
            mask = mask.reshape(mask.shape[0], *heads, *mask.shape[2:])
            if mask.dtype == torch.bool:
                grouped.masked_fill_(~mask, -torch.inf)
            else:
                grouped.add_(mask.to(scores.dtype))
        hidden = hidden_pairs(visibility, start, stop, run)
        grouped.masked_fill_(hidden[:, None, None], -torch.inf)

    def sink_rows(self, start: int) -> Tensor | None:
        """Sink logits as (1, kv_heads, groups · block, 1)."""
        sinks = self.problem.sinks
        if sinks is None:
            return None
        rows = sinks.to(self.problem.dtype).view(1, self.kv_heads, self.groups, 1)
        return rows.repeat_interleave(self.stop(start) - start, dim=2)


class _Softmax:
    """Running softmax of some rows: maximum, sum and weighted values of the keys seen so far."""

    def __init__(self, rows: Tensor, value_dim: int, sinks: Tensor | None) -> None:
        shape = (*rows.shape[:-1], 1)
        self.total = rows.new_zeros(shape) if sinks is None else rows.new_ones(shape)
        self.maximum = rows.new_full(shape, -torch.inf) if sinks is None else sinks.expand(shape)
        self.values = rows.new_zeros(*rows.shape[:-1], value_dim)

    def _raise_maximum(self, maximum: Tensor) -> Tensor:
        """Raises the maximum and returns it, finite even where nothing has been seen."""
        self.maximum, old = torch.maximum(self.maximum, maximum), self.maximum
        finite = self.maximum.masked_fill(self.maximum == -torch.inf, 0.0)
        keep = torch.exp(old - finite)
        self.total, self.values = self.total * keep, self.values.mul_(keep)
        return finite

    def add_scores(self, scores: Tensor, value: Tensor) -> None:
        weights = scores.sub_(self._raise_maximum(scores.amax(-1, keepdim=True))).exp_()
        self.total += weights.sum(-1, keepdim=True)
        self.values += weights @ value

    def add_attention(self, output: Tensor, logsumexp: Tensor) -> None:
        weight = torch.exp(logsumexp - self._raise_maximum(logsumexp))
        self.total += weight
        self.values += output * weight

    def finish(self) -> tuple[Tensor, Tensor]:
        # A row that sees no key has a total of 0: its output is 0 and its logsumexp −∞.
        output = self.values / self.total.masked_fill(self.total == 0, 1.0)
        return output, (self.maximum + self.total.log()).squeeze(-1)


def _fusable(problem: Problem) -> bool:
    """Whether torch's fused CPU attention can take the runs of one branch without mask and cap."""
    same_dim = problem.query.shape[-1] == problem.value.shape[-1]
    return problem.query.device.type == "cpu" and problem.softcap is None and same_dim


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, value_dim) and logsumexp (batch, heads, query).

    The logsumexp counts the sink and stays float32, or float64 for float64 inputs.
    """
    p, blocks = problem, _Blocks(problem)
    fusable = _fusable(problem)
    output = p.query.new_empty(*p.query.shape[:-1], p.value.shape[-1])
    logsumexp = torch.empty(p.query.shape[:-1], dtype=p.dtype, device=p.query.device)
    for index, start in enumerate(blocks.starts):
        rows = blocks.rows(blocks.scaled, start)
        softmax = _Softmax(rows, p.value.shape[-1], blocks.sink_rows(start))
        for run in blocks.runs[index] if fusable else ():
            if not run.masked and run.nearest == run.farthest:
                softmax.add_attention(*_fused(blocks, start, run))
        for run in blocks.tiles(index):
            if fusable and not run.masked and run.nearest == run.farthest:
                continue
            scores, _ = blocks.scores(start, run, blocks.branches(start, run))
            softmax.add_scores(scores, blocks.value[:, :, run.start : run.stop])
        values, statistics = softmax.finish()
        blocks.put_rows(output, start, values)
        blocks.put_rows(logsumexp, start, statistics)
    return output, logsumexp


def _fused(blocks: _Blocks, start: int, run: Run) -> tuple[Tensor, Tensor]:
    """Attention of a run by torch's fused kernel, which also returns the logsumexp to merge by."""
    output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        blocks.rows(blocks.queries_turned[run.nearest], start),
        blocks.keys(run.nearest, run),
        blocks.value[:, :, run.start : run.stop],
        scale=1.0,
    )
    return output, logsumexp.unsqueeze(-1)


def backward(
    problem: Problem, output: Tensor, logsumexp: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sinks (empty without sinks), in their dtypes."""
    p, blocks = problem, _Blocks(problem)
    grad_queries = [torch.zeros_like(blocks.scaled) for _ in blocks.queries_turned]
    grad_keys = [torch.zeros_like(keys) for keys in blocks.keys_turned]
    grad_value = torch.zeros_like(blocks.value)
    grad_sinks = torch.zeros(0 if p.sinks is None else blocks.heads, dtype=p.dtype)
    grad_sinks = grad_sinks.to(p.query.device)
    # exp(s − lse) of a row that sees nothing must be 0, not NaN.
    finite_lse = logsumexp.masked_fill(logsumexp == -torch.inf, 0.0)
    delta = (output.to(p.dtype) * grad_output.to(p.dtype)).sum(-1) - grad_lse
    for index, start in enumerate(blocks.starts):
        lse, centre = (blocks.rows(x, start).unsqueeze(-1) for x in (finite_lse, delta))
        grad_rows = blocks.rows(grad_output, start).to(p.dtype)
        grad_turned = [torch.zeros_like(blocks.rows(g, start)) for g in grad_queries]
        for run in blocks.tiles(index):
            owners = blocks.branches(start, run)
            scores, slope = blocks.scores(start, run, owners)
            value = blocks.value[:, :, run.start : run.stop]
            weights = scores.sub_(lse).exp_()
            grad_value[:, :, run.start : run.stop] += weights.mT @ grad_rows
            grad_scores = (grad_rows @ value.mT).sub_(centre).mul_(weights)
            if slope is not None:
                grad_scores *= slope
            for branch, pairs in owners:
                own = grad_scores
                if pairs is not None:
                    own = (blocks.grouped(grad_scores) * pairs).view_as(grad_scores)
                grad_turned[branch] += own @ blocks.keys(branch, run)
                offset = blocks.spans[branch].start
                grad_keys[branch][:, :, run.start - offset : run.stop - offset] += (
                    own.mT @ blocks.rows(blocks.queries_turned[branch], start)
                )
        for grad, rows in zip(grad_queries, grad_turned, strict=True):
            blocks.put_rows(grad, start, rows)
        sinks = blocks.sink_rows(start)
        if sinks is not None:
            grad_rows = -torch.exp(sinks - lse) * centre
            grad_sinks += grad_rows.view(blocks.batch, blocks.heads, -1).sum((0, 2))
    grad_query = torch.zeros_like(blocks.scaled)
    for grad, angles in zip(grad_queries, p.query_angles, strict=True):
        grad_query += p.turn(grad, angles, back=True)
    grad_key = torch.zeros_like(p.key, dtype=p.dtype)
    for grad, angles, span in zip(grad_keys, p.key_angles, blocks.spans, strict=True):
        grad_key[:, :, span] += p.turn(grad, angles[:, span], back=True)
    grad_query = grad_query * blocks.query_scale()
    return (
        grad_query.to(p.query.dtype),
        grad_key.to(p.key.dtype),
        grad_value.to(p.value.dtype),
        grad_sinks if p.sinks is None else grad_sinks.to(p.sinks.dtype),
    )
