import pytest
import torch

from ropewalk.blocks.attention import RotaryAttention
from ropewalk.blocks.rotary import DualChunk, LeakyReRoPE, ReRoPE, RotaryEmbedding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("distance", "kv_heads"),
    [(ReRoPE(window=8), 2), (LeakyReRoPE(window=8, factor=4), 1), (DualChunk(12, 4), 2)],
    ids=["rerope", "leaky-grouped", "dual-chunk"],
)
def test_a_compiled_module_trains_as_the_eager_one(distance, kv_heads: int) -> None:
    """The default compiler, which also checks the strides of what an operator returns.

    In the module queries and gradients arrive transposed; other backends take any layout.
    """
    torch.manual_seed(0)
    layer = RotaryAttention(
        32, 2, kv_heads, rotary=RotaryEmbedding(16), distance=distance, qk_norm=True
    )
    x = torch.randn(3, 27, 32)
    gradients = []
    for forward in (layer, torch.compile(layer, fullgraph=True)):
        loss = forward(x).square().sum()
        gradients.append(torch.autograd.grad(loss, tuple(layer.parameters())))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)
