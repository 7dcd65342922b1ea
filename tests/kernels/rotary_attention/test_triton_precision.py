"""Half precision on a device errs at most twice as much as the two-matrix form in plain torch."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.rotary import Plain, ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import rotary_attention


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 72, 80, 96, 128, 256])
@pytest.mark.parametrize("rule", [Plain(), ReRoPE(window=512)], ids=["plain", "rerope"])
def test_as_exact_as_plain_torch(
    rule: Any, head_dim: int, dtype: torch.dtype, as_exact_as: Any
) -> None:
    """The rule for half precision, against the two-matrix form in torch's own arithmetic."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((2, 8, 1500, head_dim), (2, 2, 1500, head_dim), (2, 2, 1500, head_dim))
    inputs = [torch.randn(s, generator=generator).to("cuda", dtype) for s in sizes]
    upstream = torch.randn(sizes[0], generator=generator).to("cuda", dtype)
    rotary = RotaryEmbedding(head_dim)

    def run(function: Any, to: torch.dtype) -> list[Tensor]:
        leaves = [x.to(to).requires_grad_() for x in inputs]
        output = function(*leaves)
        return [output, *torch.autograd.grad(output, leaves, upstream.to(to))]

    def kernels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = rotary_attention(q, k, v, rotary=rotary, distance=rule, backend="triton")
        assert isinstance(result, Tensor)
        return result

    expected = run(lambda q, k, v: two_matrices(q, k, v, rotary, rule), torch.float64)
    peer = run(lambda q, k, v: two_matrices(q, k, v, rotary, rule), dtype)
    for a, b, c in zip(peer, run(kernels, dtype), expected, strict=True):
        as_exact_as(a, b, c)


def two_matrices(q: Tensor, k: Tensor, v: Tensor, rotary: RotaryEmbedding, rule: Any) -> Tensor:
    """What everybody ships: the scores of every branch in full, one chosen for each pair."""
    index = torch.arange(q.shape[2], device=q.device)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    distance = index[:, None] - index
    scores = None
    for branch, edge in zip(rule.branches, (0, *rule.edges), strict=True):
        turned = [
            rotary.rotate(x, place(index, torch.float64))
            for x, place in ((q, branch.query), (k, branch.key))
        ]
        own = turned[0] @ turned[1].mT / math.sqrt(q.shape[-1])
        scores = own if scores is None else torch.where(distance >= edge, own, scores)
    assert scores is not None
    return scores.masked_fill(distance < 0, -torch.inf).softmax(-1) @ v
