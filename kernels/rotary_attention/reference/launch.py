"""Rotary attention in torch, by blocks of queries: the oracle, and the path of last resort.

    o_i = Σ_j exp(s_ij − lse_i) v_j,   lse_i = log(Σ_j exp(s_ij) + exp(sink))

with the scores s of walk.py. Softmax and gradients follow FlashAttention (arXiv 2205.14135,
2307.08691): running maximum and sum forward; backward recomputes the probabilities from lse and
uses ds = p ⊙ (dp − Δ), Δ_i = ⟨do_i, o_i⟩ − dlse_i. Both walk the pieces of schedule.py, so that
memory is linear in the sequence length and every pair costs one dot product, except near a branch's
edge. Packed sequences and rows of different lengths are problems of their own, so that nothing is
read that a row does not have: a cache's unfilled slots may hold anything, and 0 · NaN is NaN.

Half-precision inputs are computed in float32 and float64 ones in float64; the rounding to the
input's dtype is the last line of `forward` and `backward`.
"""

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention import varlen
from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.reference.softmax import RunningSoftmax
from ropewalk.kernels.rotary_attention.reference.walk import Walk
from ropewalk.kernels.rotary_attention.schedule import Piece


def _fusable(problem: Problem) -> bool:
    """Whether torch's fused CPU attention can take the uniform pieces."""
    same_dim = problem.query.shape[-1] == problem.value.shape[-1]
    return problem.query.device.type == "cpu" and problem.softcap is None and same_dim


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, value_dim) and logsumexp (batch, heads, query).

    The logsumexp counts the sink and stays float32, or float64 for float64 inputs.
    """
    if varlen.is_ragged(problem):
        return varlen.forward(forward, problem)
    walk, softmax, fusable = Walk(problem), RunningSoftmax(problem), _fusable(problem)
    for piece in walk.pieces:
        if fusable and piece.run.uniform:
            softmax.add_attention(piece, *_fused(walk, piece))
            continue
        for tile in walk.tiles(piece):
            softmax.add_scores(walk, tile, walk.scores(tile, walk.branches(tile))[0])
    output, logsumexp = softmax.finish()
    return output.to(problem.query.dtype), logsumexp


def _fused(walk: Walk, piece: Piece) -> tuple[Tensor, Tensor]:
    """Attention of a piece by torch's fused kernel, which also gives the logsumexp to merge by."""
    branch, run = piece.run.nearest, piece.run
    tensors = (
        walk.rows(walk.queries_turned[branch], piece),
        walk.keys_turned[branch][:, :, walk.keys_of(branch, piece)],
        walk.value[:, :, run.start : run.stop],
    )
    output, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        # It takes the last dimension to be contiguous, and does not look.
        *(x if x.stride(-1) == 1 else x.contiguous() for x in tensors),
        scale=1.0,
    )
    if walk.groups == 1:  # rows are heads already, and the kernel's layout need not be undone
        return output, logsumexp.unsqueeze(-1)
    return walk.by_head(output.contiguous()), walk.by_head(logsumexp.contiguous()).unsqueeze(-1)


def backward(
    problem: Problem, output: Tensor, logsumexp: Tensor, grad_output: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and sinks (empty without sinks), in their dtypes."""
    if varlen.is_ragged(problem):
        return varlen.backward(backward, problem, output, logsumexp, grad_output, grad_lse)
    p, walk = problem, Walk(problem)
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
            scores, slope = walk.scores(tile, owners, slope=True)
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
