"""Rotary attention in torch, by blocks of queries: the oracle, and the path that CPUs take.

    s_ij = ⟨R^{q_b(i)} q_i, R^{k_b(j)} k_j⟩ · scale · λ_i,   b = branch(i, j)
    s_ij ← cap · tanh(s_ij / cap), then the mask is added
    o_i  = Σ_j exp(s_ij − lse_i) v_j,   lse_i = log(Σ_j exp(s_ij) + exp(sink))

λ is the query factor (log n scaling). Softmax and gradients follow FlashAttention (arXiv
2205.14135, 2307.08691): running maximum and sum forward; backward recomputes the probabilities
from lse and uses ds = p ⊙ (dp − Δ), Δ_i = ⟨do_i, o_i⟩ − dlse_i. Both walk the pieces of
schedule.py, so that memory is linear in the sequence length and every pair costs one dot product,
except near a branch's edge.

Half-precision inputs are computed in float32 and float64 ones in float64; the rounding to the
input's dtype is the last line of `forward` and `backward`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ropewalk.kernels.rotary import rotate
from ropewalk.kernels.rotary_attention.protocols import Layout
from ropewalk.kernels.rotary_attention.schedule import (
    Piece,
    Visibility,
    branch_of_pairs,
    hidden_pairs,
    mask_rows,
    pieces,
)

# Queries in a block, from coarse to fine, and scores in a tile, so that one stays in the cache.
QUERY_BLOCKS = (1024, 256, 128)
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


class _Walk:
    """The pieces of a problem, its rotated queries and keys, and the scores of a piece."""

    def __init__(self, problem: Problem) -> None:
        self.problem = p = problem
        self.batch, self.heads = p.query.shape[:2]
        self.kv_heads = p.key.shape[1]
        self.groups = self.heads // self.kv_heads
        self.pieces = pieces(p.visibility, QUERY_BLOCKS)
        self.scaled = p.query.to(p.dtype) * self.query_scale()
        self.queries_turned = [p.turn(self.scaled, angles) for angles in p.query_angles]
        self.value = p.value.to(p.dtype)
        self.spans: list[slice] = []
        self.keys_turned: list[Tensor] = []
        for branch, angles in enumerate(p.key_angles):
            # Only the keys that meet a query in this branch: in decoding, the window's.
            span = self._span(branch)
            self.spans.append(span)
            self.keys_turned.append(p.turn(p.key[:, :, span].to(p.dtype), angles[:, span]))

    def query_scale(self) -> Tensor | float:
        factor = self.problem.query_factor
        if factor is None:
            return self.problem.scale
        return factor.to(self.problem.dtype)[:, None, :, None] * self.problem.scale

    def _span(self, branch: int) -> slice:
        runs = [p.run for p in self.pieces if p.run.nearest <= branch <= p.run.farthest]
        return slice(
            min((r.start for r in runs), default=0), max((r.stop for r in runs), default=0)
        )

    def tiles(self, piece: Piece) -> list[Piece]:
        """The piece, cut along the keys so that a tile of scores fits the cache."""
        rows = self.batch * self.heads * (piece.stop - piece.start)
        size, run = max(MINIMUM_TILE, TILE_ELEMENTS // max(1, rows)), piece.run
        return [
            piece._replace(run=run._replace(start=start, stop=min(start + size, run.stop)))
            for start in range(run.start, run.stop, size)
        ]

    def rows(self, x: Tensor, piece: Piece) -> Tensor:
        """(batch, heads, query, …) → (batch, kv_heads, groups · block, …): GQA by matmul rows."""
        x = x[:, :, piece.start : piece.stop]
        return x.reshape(self.batch, self.kv_heads, self.groups * x.shape[2], *x.shape[3:])

    def by_head(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`: (batch, heads, block, …)."""
        return rows.view(self.batch, self.heads, rows.shape[2] // self.groups, *rows.shape[3:])

    def grouped(self, rows: Tensor) -> Tensor:
        """View of a tile of scores as (batch, kv_heads, groups, query, key)."""
        block = rows.shape[2] // self.groups
        return rows.view(*rows.shape[:2], self.groups, block, rows.shape[-1])

    def keys_of(self, branch: int, piece: Piece) -> slice:
        """The piece's keys among those that were rotated for the branch."""
        offset = self.spans[branch].start
        return slice(piece.run.start - offset, piece.run.stop - offset)

    def branches(self, piece: Piece) -> list[tuple[int, Tensor | None]]:
        """Branches of a piece, each with the pairs it owns (None for all of them)."""
        nearest, farthest = piece.run.nearest, piece.run.farthest
        if nearest == farthest:
            return [(nearest, None)]
        pairs = branch_of_pairs(self.problem.visibility, piece)[:, None, None]
        return [(branch, pairs == branch) for branch in range(nearest, farthest + 1)]

    def scores(
        self, piece: Piece, owners: list[tuple[int, Tensor | None]]
    ) -> tuple[Tensor, Tensor | None]:
        """Scores of a tile after cap and mask, and the cap's derivative if there is a cap."""
        softcap = self.problem.softcap
        scores = self._dots(owners[0][0], piece)
        for branch, pairs in owners[1:]:
            assert pairs is not None  # several branches share the tile
            other, chosen = self.grouped(self._dots(branch, piece)), self.grouped(scores)
            torch.where(pairs, other, chosen, out=chosen)
        slope = None
        if softcap is not None:
            bounded = torch.tanh(scores / softcap)
            scores, slope = bounded * softcap, 1 - bounded.square()
        if piece.run.masked:
            self._mask(scores, piece)
        return scores, slope

    def _dots(self, branch: int, piece: Piece) -> Tensor:
        keys = self.keys_turned[branch][:, :, self.keys_of(branch, piece)]
        return self.rows(self.queries_turned[branch], piece) @ keys.mT

    def _mask(self, scores: Tensor, piece: Piece) -> None:
        visibility, (start, stop, run) = self.problem.visibility, piece
        grouped = self.grouped(scores)
        if visibility.attention_mask is not None:
            mask = mask_rows(visibility.attention_mask, start, stop)[..., run.start : run.stop]
            heads = (self.kv_heads, self.groups) if mask.shape[1] != 1 else (1, 1)
            mask = mask.reshape(mask.shape[0], *heads, *mask.shape[2:])
            if mask.dtype == torch.bool:
                grouped.masked_fill_(~mask, -torch.inf)
            else:
                grouped.add_(mask.to(scores.dtype))
        grouped.masked_fill_(hidden_pairs(visibility, piece)[:, None, None], -torch.inf)


class _Softmax:
    """Running softmax of all queries: maximum, sum and weighted values of the keys seen so far."""

    def __init__(self, problem: Problem) -> None:
        batch, heads, queries, _ = problem.query.shape
        options = {"dtype": problem.dtype, "device": problem.query.device}
        self.maximum = torch.full((batch, heads, queries, 1), -torch.inf, **options)
        self.total = torch.zeros((batch, heads, queries, 1), **options)
        self.values = torch.zeros((batch, heads, queries, problem.value.shape[-1]), **options)
        if problem.sinks is not None:
            # A sink is a key that was seen before all others and has no value.
            self.maximum.copy_(problem.sinks.to(problem.dtype)[:, None, None])
            self.total.fill_(1.0)

    def _raise_maximum(self, block: slice, maximum: Tensor) -> Tensor:
        """Raises the maximum and returns it, finite even where nothing has been seen."""
        old = self.maximum[:, :, block]
        new = torch.maximum(old, maximum)
        finite = new.masked_fill(new == -torch.inf, 0.0)
        keep = torch.exp(old - finite)
        self.maximum[:, :, block] = new
        self.total[:, :, block] *= keep
        self.values[:, :, block] *= keep
        return finite

    def add_scores(self, walk: _Walk, piece: Piece, scores: Tensor) -> None:
        """Adds a tile of scores, which are overwritten."""
        block = slice(piece.start, piece.stop)
        by_head = walk.by_head(scores)
        by_head.sub_(self._raise_maximum(block, by_head.amax(-1, keepdim=True))).exp_()
        self.total[:, :, block] += by_head.sum(-1, keepdim=True)
        value = walk.value[:, :, piece.run.start : piece.run.stop]
        self.values[:, :, block] += walk.by_head(scores @ value)

    def add_attention(self, piece: Piece, output: Tensor, logsumexp: Tensor) -> None:
        """Adds attention to other keys, by its output and logsumexp."""
        block = slice(piece.start, piece.stop)
        weight = torch.exp(logsumexp - self._raise_maximum(block, logsumexp))
        self.total[:, :, block] += weight
        self.values[:, :, block].addcmul_(output, weight)

    def finish(self) -> tuple[Tensor, Tensor]:
        # A row that sees no key has a total of 0: its output is 0 and its logsumexp −∞.
        output = self.values / self.total.masked_fill(self.total == 0, 1.0)
        return output, (self.maximum + self.total.log()).squeeze(-1)


def _fusable(problem: Problem) -> bool:
    """Whether torch's fused CPU attention can take the uniform pieces."""
    same_dim = problem.query.shape[-1] == problem.value.shape[-1]
    return problem.query.device.type == "cpu" and problem.softcap is None and same_dim


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, value_dim) and logsumexp (batch, heads, query).

    The logsumexp counts the sink and stays float32, or float64 for float64 inputs.
    """
    walk, softmax, fusable = _Walk(problem), _Softmax(problem), _fusable(problem)
    for piece in walk.pieces:
        if fusable and piece.run.uniform:
            softmax.add_attention(piece, *_fused(walk, piece))
            continue
        for tile in walk.tiles(piece):
            softmax.add_scores(walk, tile, walk.scores(tile, walk.branches(tile))[0])
    output, logsumexp = softmax.finish()
    return output.to(problem.query.dtype), logsumexp


def _fused(walk: _Walk, piece: Piece) -> tuple[Tensor, Tensor]:
    """Attention of a piece by torch's fused kernel, which also gives the logsumexp to merge by."""
    branch, run = piece.run.nearest, piece.run
    output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        walk.rows(walk.queries_turned[branch], piece),
        walk.keys_turned[branch][:, :, walk.keys_of(branch, piece)],
        walk.value[:, :, run.start : run.stop],
        scale=1.0,
    )
    return walk.by_head(output.contiguous()), walk.by_head(logsumexp.contiguous()).unsqueeze(-1)


def backward(
    problem: Problem, output: Tensor, logsumexp: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sinks (empty without sinks), in their dtypes."""
    p, walk = problem, _Walk(problem)
    grad_queries = [torch.zeros_like(walk.scaled) for _ in walk.queries_turned]
    grad_keys = [torch.zeros_like(keys) for keys in walk.keys_turned]
    grad_value = torch.zeros_like(walk.value)
    grad_output = grad_output.to(p.dtype)
    # exp(s − lse) of a row that sees nothing must be 0, not NaN.
    lse = logsumexp.masked_fill(logsumexp == -torch.inf, 0.0)
    delta = (output.to(p.dtype) * grad_output).sum(-1) - grad_lse
    for piece in walk.pieces:
        for tile in walk.tiles(piece):
            owners = walk.branches(tile)
            scores, slope = walk.scores(tile, owners)
            keys = slice(tile.run.start, tile.run.stop)
            weights = scores.sub_(walk.rows(lse, tile).unsqueeze(-1)).exp_()
            grad_rows = walk.rows(grad_output, tile)
            grad_value[:, :, keys] += weights.mT @ grad_rows
            grad_scores = grad_rows @ walk.value[:, :, keys].mT
            grad_scores.sub_(walk.rows(delta, tile).unsqueeze(-1)).mul_(weights)
            if slope is not None:
                grad_scores *= slope
            for branch, pairs in owners:
                own = grad_scores
                if pairs is not None:
                    own = (walk.grouped(grad_scores) * pairs).view_as(grad_scores)
                keys = walk.keys_of(branch, tile)
                grad_rows = own @ walk.keys_turned[branch][:, :, keys]
                grad_queries[branch][:, :, tile.start : tile.stop] += walk.by_head(grad_rows)
                query_rows = walk.rows(walk.queries_turned[branch], tile)
                grad_keys[branch][:, :, keys] += own.mT @ query_rows
    grad_query = torch.zeros_like(walk.scaled)
    for grad, angles in zip(grad_queries, p.query_angles, strict=True):
        grad_query += p.turn(grad, angles, back=True)
    grad_key = torch.zeros_like(p.key, dtype=p.dtype)
    for grad, angles, span in zip(grad_keys, p.key_angles, walk.spans, strict=True):
        grad_key[:, :, span] += p.turn(grad, angles[:, span], back=True)
    grad_sinks = lse.new_empty(0)
    if p.sinks is not None:
        weights = torch.exp(p.sinks.to(p.dtype)[:, None] - lse)
        grad_sinks = -(weights * delta).sum((0, 2)).to(p.sinks.dtype)
    return (
        (grad_query * walk.query_scale()).to(p.query.dtype),
        grad_key.to(p.key.dtype),
        grad_value.to(p.value.dtype),
        grad_sinks,
    )
