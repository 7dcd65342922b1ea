"""Memory grows with the length, not with its square; measured in a process of its own."""

from itertools import pairwise

import pytest

SCRIPT = """
import sys, torch
from ropewalk.blocks.rotary import DualChunk, Plain, ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import rotary_attention
torch.set_num_threads(1)
heads, dim, backward = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "backward"
rotary = RotaryEmbedding(dim)
def packed(n):
    # Sequences of all kinds of lengths, the longest half of the whole.
    return torch.tensor([0, n // 2, n // 2, n // 2 + 1, 3 * n // 4, n - 100, n], dtype=torch.int32)
case = {
    "rerope": lambda n: {"distance": ReRoPE(window=256)},
    "dual chunk": lambda n: {"distance": DualChunk(chunk=512, local=128)},
    "sliding window": lambda n: {"distance": Plain(), "sliding_window": 256},
    "packed": lambda n: {"distance": ReRoPE(window=256), "cu_seqlens_query": packed(n)},
}[sys.argv[5]]
def run(n):
    q, k, v = (torch.randn(1, heads, n, dim, requires_grad=backward) for _ in range(3))
    out = rotary_attention(q, k, v, rotary=rotary, backend=sys.argv[4], **case(n))
    if backward:
        out.sum().backward()
run(512)
for n in map(int, sys.argv[6:]):
    print(peak_of(lambda: run(n)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", ["rerope", "dual chunk", "sliding window", "packed"])
def test_memory_grows_linearly(peaks, direction, backend, case):
    lengths = (4096, 8192, 16384)
    found = peaks(SCRIPT, 1, 16, direction, backend, case, *lengths)
    matrix = lengths[-1] ** 2 * 4  # bytes of one head's scores
    assert found[-1] < matrix / 8, f"{found} bytes where a matrix of scores has {matrix}"
    for short, long in pairwise(found):
        assert long < 2.5 * short + 8 * 2**20, f"{found} bytes at lengths {lengths}"


@pytest.mark.slow
def test_16384_tokens_take_less_than_1500_megabytes(peaks):
    """Eight heads of 64 in float32, forward and backward, inputs and gradients included."""
    (found,) = peaks(SCRIPT, 8, 64, "backward", "auto", "rerope", 16384)
    assert found < 1.5e9
