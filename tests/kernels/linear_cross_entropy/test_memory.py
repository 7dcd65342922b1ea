"""Logits are never held: peak memory of a process of its own, against that of logits in memory."""

import subprocess
import sys
from pathlib import Path

import pytest

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("peak memory is read from /proc, which this system lacks", allow_module_level=True)

from ropewalk.kernels.linear_cross_entropy.chunks import WORKSPACE

PEAK = """
import sys, torch, torch.nn.functional as F
from pathlib import Path
from ropewalk.kernels.linear_cross_entropy import linear_cross_entropy
torch.set_num_threads(1)
peer, dtype = sys.argv[1], getattr(torch, sys.argv[2])
options = {"exact": sys.argv[3] == "exact"}
if sys.argv[4] == "capped":
    options |= {"softcap": 30.0}
tokens, dim, vocabulary = map(int, sys.argv[5:8])

def resident(field):  # in KiB: VmRSS now, VmHWM at its peak
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

def run(tokens, dim, vocabulary):
    hidden = torch.randn(tokens, dim).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, dim).to(dtype).requires_grad_()
    hidden.requires_grad_("frozen" not in sys.argv)
    targets = torch.randint(vocabulary, (tokens,))
    # The peak that getrusage tells may be that of the process which started this one.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    if peer == "ours":
        loss = linear_cross_entropy(hidden, weight, targets, **options)
    else:
        loss = F.cross_entropy(hidden @ weight.T, targets)
    needed = [hidden, weight] if "frozen" not in sys.argv else [weight]
    torch.autograd.grad(loss * 0.5, needed)
    return resident("VmHWM") - before

run(8, 8, 300)
print(run(tokens, dim, vocabulary))
"""


def peak(*arguments):
    """Bytes beyond the inputs, gradients included."""
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(run.stdout) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("exact", ["exact", "filtered"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_most_the_workspace_beside_the_gradients(dtype, exact):
    """Half precision adds the float32 sum of the gradient of the hidden states."""
    tokens, dim, vocabulary = 2048, 256, 50000
    size = 4 if dtype == "float32" else 2
    gradients = (tokens + vocabulary) * dim * size
    wide = tokens * dim * 4 if dtype != "float32" else 0
    found = peak("ours", dtype, exact, "capped", tokens, dim, vocabulary)
    assert found - gradients - wide <= WORKSPACE


@pytest.mark.slow
def test_many_tokens_whose_hidden_states_need_no_gradient():
    """Nothing is held for a gradient that nobody wants."""
    tokens, dim, vocabulary = 16384, 1024, 2048
    found = peak("ours", "bfloat16", "exact", "plain", tokens, dim, vocabulary, "frozen")
    assert found - vocabulary * dim * 2 <= WORKSPACE


@pytest.mark.slow
def test_many_tokens_with_a_small_head():
    """Gradients as large as the workspace are not formed in the forward pass."""
    tokens, dim, vocabulary = 65536, 256, 4096
    found = peak("ours", "float32", "exact", "plain", tokens, dim, vocabulary)
    assert found - (tokens + vocabulary) * dim * 4 <= WORKSPACE


@pytest.mark.slow
def test_a_fifth_of_what_logits_take():
    size = (4096, 128, 16384)
    logits = peak("logits", "float32", "exact", "plain", *size)
    assert peak("ours", "float32", "exact", "plain", *size) < logits / 5
