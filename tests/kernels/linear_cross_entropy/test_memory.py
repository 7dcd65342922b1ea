"""Logits are never held: peak memory of a process of its own, against that of logits in memory."""

import pytest

from ropewalk.kernels.linear_cross_entropy.chunks import WORKSPACE

SCRIPT = """
import sys, torch, torch.nn.functional as F
from ropewalk.kernels.linear_cross_entropy import linear_cross_entropy
torch.set_num_threads(1)
peer, dtype = sys.argv[1], getattr(torch, sys.argv[2])
options = {"exact": sys.argv[3] == "exact"}
if sys.argv[4] == "capped":
    options |= {"softcap": 30.0}
tokens, dim, vocabulary = map(int, sys.argv[5:8])

def peak(tokens, dim, vocabulary):
    hidden = torch.randn(tokens, dim).to(dtype).requires_grad_("frozen" not in sys.argv)
    weight = torch.randn(vocabulary, dim).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    def call():
        if peer == "ours":
            loss = linear_cross_entropy(hidden, weight, targets, **options)
        else:
            loss = F.cross_entropy(hidden @ weight.T, targets)
        torch.autograd.grad(loss * 0.5, [x for x in (hidden, weight) if x.requires_grad])
    return peak_of(call)

peak(8, 8, 300)
print(peak(tokens, dim, vocabulary))
"""


@pytest.fixture
def peak(peaks):
    """Bytes beyond the inputs, gradients included."""
    return lambda *arguments: peaks(SCRIPT, *arguments)[0]


@pytest.mark.slow
@pytest.mark.parametrize("exact", ["exact", "filtered"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_most_the_workspace_beside_the_gradients(peak, dtype, exact):
    """Half precision adds the float32 sum of the gradient of the hidden states."""
    tokens, dim, vocabulary = 2048, 256, 50000
    size = 4 if dtype == "float32" else 2
    gradients = (tokens + vocabulary) * dim * size
    wide = tokens * dim * 4 if dtype != "float32" else 0
    found = peak("ours", dtype, exact, "capped", tokens, dim, vocabulary)
    assert found - gradients - wide <= WORKSPACE


@pytest.mark.slow
def test_many_tokens_whose_hidden_states_need_no_gradient(peak):
    """Nothing is held for a gradient that nobody wants."""
    tokens, dim, vocabulary = 16384, 1024, 2048
    found = peak("ours", "bfloat16", "exact", "plain", tokens, dim, vocabulary, "frozen")
    assert found - vocabulary * dim * 2 <= WORKSPACE


@pytest.mark.slow
def test_many_tokens_with_a_small_head(peak):
    """Gradients as large as the workspace are not formed in the forward pass."""
    tokens, dim, vocabulary = 65536, 256, 1024
    found = peak("ours", "float32", "exact", "plain", tokens, dim, vocabulary)
    assert found - (tokens + vocabulary) * dim * 4 <= WORKSPACE


@pytest.mark.slow
def test_a_fifth_of_what_logits_take(peak):
    size = (4096, 128, 16384)
    logits = peak("logits", "float32", "exact", "plain", *size)
    assert peak("ours", "float32", "exact", "plain", *size) < logits / 5
