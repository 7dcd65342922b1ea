"""The walk over a problem's pieces: rotated queries and keys, and the scores of one tile.

    s_ij = ⟨R^{q_b(i)} q_i, R^{k_b(j)} k_j⟩ · scale · λ_i,   b = branch(i, j)
    s_ij ← cap · tanh(s_ij / cap), then the mask is added

λ is the query factor (log n scaling). Forward and backward take the same walk, so that what one
computed the other recomputes. Grouped-query heads are rows of one matrix product.
"""

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.schedule import (
    Piece,
    branch_of_pairs,
    hidden_pairs,
    mask_rows,
    mask_shows,
    pieces,
)

# Queries in a block, from coarse to fine, and scores in a tile, so that one stays in the cache.
QUERY_BLOCKS = (1024, 256, 128)
TILE_ELEMENTS = 2**20
MINIMUM_TILE = 64


class Walk:
    """The pieces of a problem, its rotated queries and keys, and the scores of a piece."""

    def __init__(self, problem: Problem) -> None:
        self.problem = p = problem
        self.batch, self.heads = p.query.shape[:2]
        self.kv_heads = p.key.shape[1]
        self.groups = self.heads // self.kv_heads
        empty = p.query.numel() == 0 or p.key.numel() == 0
        self.pieces = [] if empty else pieces(p.visibility, QUERY_BLOCKS)
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
        self, piece: Piece, owners: list[tuple[int, Tensor | None]], *, slope: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Scores of a tile after cap and mask, and the cap's derivative if wanted and not 1."""
        softcap, derivative = self.problem.softcap, None
        scores = self._dots(owners[0][0], piece)
        for branch, pairs in owners[1:]:
            assert pairs is not None  # several branches share the tile
            other, chosen = self.grouped(self._dots(branch, piece)), self.grouped(scores)
            torch.where(pairs, other, chosen, out=chosen)
        if softcap is not None:
            scores.div_(softcap).tanh_()
            if slope:
                derivative = scores.square().neg_().add_(1)
            scores.mul_(softcap)
        if piece.run.masked:
            self._mask(scores, piece)
        return scores, derivative

    def _dots(self, branch: int, piece: Piece) -> Tensor:
        keys = self.keys_turned[branch][:, :, self.keys_of(branch, piece)]
        return self.rows(self.queries_turned[branch], piece) @ keys.mT

    def _mask(self, scores: Tensor, piece: Piece) -> None:
        """Passes over the scores are what costs; what heads share is put together before one."""
        visibility, (start, stop, run) = self.problem.visibility, piece
        grouped = self.grouped(scores)
        hidden = hidden_pairs(visibility, piece)[:, None, None]
        if visibility.attention_mask is not None:
            mask = mask_rows(visibility.attention_mask, start, stop)[..., run.start : run.stop]
            heads = (self.kv_heads, self.groups) if mask.shape[1] != 1 else (1, 1)
            mask = mask.reshape(mask.shape[0], *heads, *mask.shape[2:])
            unseen = ~mask_shows(mask)
            if mask.dtype != torch.bool:
                grouped.add_(mask.to(scores.dtype).masked_fill(unseen, -torch.inf))
            elif heads == (1, 1):
                hidden = hidden | unseen
            else:
                grouped.masked_fill_(unseen, -torch.inf)
        if hidden.any():
            grouped.masked_fill_(hidden, -torch.inf)
