"""Triton's kernels in use: strides of any kind, compilers, prefill followed by decoding."""

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.rotary import DualChunk, ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import rotary_attention

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("uninitialised")


def random_tensors(tokens: int, dtype: torch.dtype, count: int = 3) -> list[Tensor]:
    """Query, key, value and more, (1, 2, tokens, 16)."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 2, tokens, 16, generator=generator).to(dtype) for _ in range(count)]


def test_strides_of_any_kind(place: tuple[str, torch.dtype]) -> None:
    device, dtype = place
    q, k, v, weight = random_tensors(18, dtype, count=4)
    results = []
    for view in (
        lambda x: x,
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: torch.stack((x, x), -1)[..., 0],
        lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    ):
        leaves = [view(x).to(device).requires_grad_() for x in (q, k, v)]
        output = rotary_attention(
            *leaves, rotary=RotaryEmbedding(16), distance=ReRoPE(window=9), backend="triton"
        )
        grad = view(weight).to(device)
        results.append([output, *torch.autograd.grad(output, leaves, grad)])
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_compiles_as_one_graph(place: tuple[str, torch.dtype]) -> None:
    device, dtype = place
    rotary = RotaryEmbedding(16).to(device)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        output = rotary_attention(
            q, k, v, rotary=rotary, distance=ReRoPE(window=9), backend="triton"
        )
        assert isinstance(output, Tensor)
        return output * 2

    tensors = [x.to(device).requires_grad_() for x in random_tensors(20, dtype)]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = [f(*tensors) for f in (function, compiled)]
    for a, b in zip(*[(x, *torch.autograd.grad(x.sum(), tensors)) for x in results], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_prefill_equals_token_by_token(place: tuple[str, torch.dtype]) -> None:
    """The forward kernel for all queries, the decoding kernel for one after another."""
    device, dtype = place
    tensors = [x.to(device) for x in random_tensors(36, dtype)]
    q, k, v = tensors
    for rule in (ReRoPE(window=21), DualChunk(chunk=24, local=9)):
        options = {"rotary": RotaryEmbedding(16), "distance": rule, "backend": "triton"}
        whole = rotary_attention(q, k, v, **options)
        for n in (1, 2, 20, 33, 36):
            one = rotary_attention(q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n], **options)
            limit = 1e-5 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(one, whole[:, :, n - 1 : n], rtol=0, atol=limit)


def test_sinks_without_any_key(place: tuple[str, torch.dtype]) -> None:
    """The logsumexp is the sink, and so is its gradient."""
    device, dtype = place
    q, k, v, weight = random_tensors(5, dtype, count=4)
    sinks = torch.tensor([0.5, -1.0], device=device, requires_grad=True)
    leaves = [x.to(device).requires_grad_() for x in (q, k[:, :, :0], v[:, :, :0])]
    output, lse = rotary_attention(
        *leaves, rotary=RotaryEmbedding(16), sinks=sinks, backend="triton", return_logsumexp=True
    )
    torch.testing.assert_close(lse, sinks[:, None].expand_as(lse), rtol=0, atol=0)
    weight = weight[..., 0].float().to(device)
    grads = torch.autograd.grad((lse * weight).sum() + output.sum(), [sinks, *leaves])
    torch.testing.assert_close(grads[0], weight.sum((0, 2)))
    assert not any(x.any() for x in (output, *grads[1:]))


@pytest.mark.interpret
def test_more_heads_than_a_grid_counts() -> None:
    q, k, v = (torch.zeros(1, 70000, 1, 4) for _ in range(3))
    with pytest.raises(ValueError, match=r"at most 65535 heads .* got 1 · 70000"):
        rotary_attention(q, k, v, rotary=None, backend="triton")
