"""Tensors may lie in memory in any way, whichever implementation reads them."""

from typing import Any

import pytest
import torch

from ropewalk.blocks.rotary import Plain, ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import rotary_attention

VIEWS = {
    "last-strided": lambda x: x.mT.contiguous().mT,
    "token-major": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every-other": lambda x: torch.stack((x, x), -1)[..., 0],
}
EXTRAS: dict[str, dict[str, Any]] = {
    "none": {},
    "mask": {"attention_mask": torch.ones(1, 1, 40, 40, dtype=torch.bool)},
    "shuffled": {
        name: torch.randperm(40, generator=torch.Generator().manual_seed(1))
        for name in ("query_positions", "key_positions")
    },
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("distance", [Plain(), ReRoPE(window=15)], ids=["plain", "rerope"])
@pytest.mark.parametrize("head_dim", [2, 16])
def test_results_do_not_depend_on_strides(view, extra, backend, distance, head_dim):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(2, 2, 40, head_dim, generator=generator) for _ in range(4)]
    results = []
    for lay in (lambda x: x, VIEWS[view]):
        leaves = [lay(x).requires_grad_() for x in tensors[:3]]
        output = rotary_attention(
            *leaves, rotary=RotaryEmbedding(head_dim), distance=distance, backend=backend,
            **EXTRAS[extra],
        )  # fmt: skip
        results.append((output, *torch.autograd.grad(output, leaves, lay(tensors[3]))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "offset"), [(6, 6, 0), (10, 3, 1), (16, 5, 0), (8, 8, 1)]
)
def test_rows_off_multiples_of_16_bytes(kernel_device, head_dim, value_dim, offset):
    """Widths that 16 bytes do not divide, and memory that begins `offset` elements late."""

    def leaf(heads: int, width: int) -> torch.Tensor:
        memory = torch.randn(heads * 20 * width + offset, device=kernel_device)
        return memory[offset:].view(1, heads, 20, width)

    tensors = leaf(2, head_dim), leaf(1, head_dim), leaf(1, value_dim)
    upstream = leaf(2, value_dim)
    results = []
    for backend in ("triton", "reference"):
        leaves = [x.detach().requires_grad_() for x in tensors]
        output = rotary_attention(
            *leaves, rotary=RotaryEmbedding(head_dim).to(kernel_device),
            distance=ReRoPE(window=7), backend=backend,
        )  # fmt: skip
        results.append((output, *torch.autograd.grad(output, leaves, upstream)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_no_query_of_an_unaligned_width(kernel_device):
    q, k, v = (torch.randn(1, 2, n, 6, device=kernel_device) for n in (0, 5, 5))
    rotary = RotaryEmbedding(6).to(kernel_device)
    assert rotary_attention(q, k, v, rotary=rotary, backend="triton").shape == (1, 2, 0, 6)


@pytest.mark.parametrize("scale", [0.0, -0.5])
@pytest.mark.parametrize("distance", [Plain(), ReRoPE(window=15)], ids=["plain", "rerope"])
def test_scales_that_are_not_positive(scale, distance):
    """Torch's fused attention gives NaN for them; they are answered by the equation."""
    q, k, v = torch.randn(3, 1, 2, 40, 16)
    options = {"rotary": RotaryEmbedding(16), "distance": distance, "scale": scale}
    expected = rotary_attention(q, k, v, backend="reference", **options)
    torch.testing.assert_close(rotary_attention(q, k, v, **options), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="positive scale, got"):
        rotary_attention(q, k, v, backend="flash", **options)
