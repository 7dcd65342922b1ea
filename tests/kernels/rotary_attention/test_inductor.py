import pytest
import torch

from ropewalk.blocks.attention import RotaryAttention
from ropewalk.blocks.rotary import DualChunk, LeakyReRoPE, ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import rotary_attention


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


@pytest.mark.interpret
@pytest.mark.parametrize("distance", [ReRoPE(window=4), DualChunk(8, 3)], ids=str)
def test_triton_compiled_trains_as_eager(distance) -> None:
    """Its launches stay opaque to the default compiler, which plans the memory around them."""
    torch.compiler.reset()
    rotary = RotaryEmbedding(8)
    shapes = ((2, 4, 5, 8), (2, 2, 9, 8), (2, 2, 9, 8))
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]

    def forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = rotary_attention(
            query, key, value, rotary=rotary, distance=distance, backend="triton"
        )
        assert isinstance(output, torch.Tensor)
        return output * 2

    results = []
    for function in (forward, torch.compile(forward, fullgraph=True)):
        output = function(*tensors)
        results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
