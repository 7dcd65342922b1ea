"""Decoding in half precision is as exact as plain torch in it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.rotary import ReRoPE, RotaryEmbedding

pytest.importorskip("triton")

Cache = Callable[..., tuple[Tensor, Tensor, Tensor]]


def two_matrices(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """ReRoPE by two whole score matrices, every product in the dtype of the inputs."""
    queries, keys, dim = query.shape[2], key.shape[2], query.shape[3]
    i = torch.arange(keys - queries, keys, device=query.device)[:, None]
    j = torch.arange(keys, device=query.device)
    frequencies = RotaryEmbedding(dim).inverse_frequencies().to(query.device, torch.float64)

    def turn(x: Tensor, positions: Tensor) -> Tensor:
        angle = positions.double().reshape(-1, 1) * frequencies
        a, b = x.double().chunk(2, -1)
        turned = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
        return torch.cat(turned, -1).to(x.dtype)

    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    near = turn(query, i) @ turn(key, j).mT
    far = turn(query, torch.full_like(i, window)) @ key.mT
    scores = torch.where(i - j < window, near, far) * dim**-0.5
    weights = scores.masked_fill(j > i, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 128, 192])
def test_half_precision(
    decode: Any, oracle: Any, cache: Cache, rerope: Any, as_exact_as: Any, dtype: Any, head_dim: int
) -> None:
    tensors = cache(queries=2, keys=300, head_dim=head_dim, dtype=dtype)
    output, lse = decode(*tensors, rotary=RotaryEmbedding(head_dim), distance=ReRoPE(64))
    truth, true_lse = oracle(*tensors, rotary=RotaryEmbedding(head_dim), relative=rerope(64)[1])
    # The interpreter rounds to bfloat16 by cutting bits off.
    times = 4.0 if decode.device.type == "cpu" and dtype == torch.bfloat16 else 2.0
    as_exact_as(two_matrices(*tensors, 64), output, truth, times=times)
    torch.testing.assert_close(lse.double().cpu(), true_lse, rtol=0, atol=0.02)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [512, 10**6], ids=["near-and-far", "near"])
def test_long_cache_on_a_device(decode: Any, as_exact_as: Any, window: int) -> None:
    """All of the shipped splits; checked against float64 on the device, by key heads."""
    generator = torch.Generator("cuda").manual_seed(0)
    query = torch.randn(1, 32, 1, 128, device="cuda", generator=generator)
    key, value = torch.randn(2, 1, 8, 65_537, 128, device="cuda", generator=generator)
    halves = [x.bfloat16() for x in (query, key, value)]
    for decode.splits in (1, 33, 264):
        output, _ = decode(*halves, rotary=RotaryEmbedding(128), distance=ReRoPE(window))
        truth = two_matrices(*(x.double() for x in halves), window)
        as_exact_as(two_matrices(*halves, window), output, truth)
