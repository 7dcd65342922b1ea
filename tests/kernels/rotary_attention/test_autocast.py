import pytest
import torch

from ropewalk.blocks.rotary import Plain, ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import rotary_attention


@pytest.mark.parametrize("distance", [Plain(), ReRoPE(window=3)], ids=["plain", "rerope"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_dtypes_under_autocast_become_its_dtype(distance, dtype: torch.dtype) -> None:
    query, key = torch.randn(2, 1, 2, 9, 8)
    value = torch.randn(1, 2, 9, 8).to(dtype)
    rotary = RotaryEmbedding(8)
    options = {"rotary": rotary, "distance": distance, "sliding_window": 8}
    with torch.autocast("cpu", dtype=dtype):
        output = rotary_attention(query, key, value, **options)
    expected = rotary_attention(query.to(dtype), key.to(dtype), value, **options)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["reference", "flash"])
def test_a_backward_inside_autocast_accumulates_in_float32(backend: str) -> None:
    """Autocast would round what is float32 on purpose; flash's kernels it knows not."""
    key, value = torch.randn(2, 1, 2, 64, 8).bfloat16()
    gradients = []
    for inside in (False, True):
        query = torch.randn(1, 2, 64, 8, generator=torch.Generator().manual_seed(0))
        query = query.bfloat16().requires_grad_()
        output = rotary_attention(
            query, key, value, rotary=RotaryEmbedding(8), distance=ReRoPE(window=5),
            backend=backend,
        )  # fmt: skip
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            output.float().square().sum().backward()
        gradients.append(query.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
