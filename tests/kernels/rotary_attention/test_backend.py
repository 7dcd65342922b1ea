"""Which implementation answers, and why another one cannot."""

import subprocess
import sys

import pytest
import torch

from ropewalk.blocks.rotary import DualChunk, Plain, ReRoPE, RotaryEmbedding
from ropewalk.kernels import backends
from ropewalk.kernels.rotary_attention import backend, flash, reference, rotary_attention

ROTARY = RotaryEmbedding(8)


@pytest.fixture
def problems(monkeypatch):
    """What reaches the choice of an implementation, and what was chosen."""
    seen = []
    choose = backend.implementation

    def spy(problem, name):
        seen.append((problem, choose(problem, name)))
        return seen[-1][1]

    monkeypatch.setattr("ropewalk.kernels.rotary_attention.op.implementation", spy)
    return seen


@pytest.mark.parametrize(
    ("options", "module"),
    [
        ({}, flash),
        ({"backend": "flash"}, flash),
        ({"backend": "reference"}, reference),
        ({"softcap": 3.0}, reference),
        ({"attention_mask": torch.ones(1, 1, 1, 19, dtype=torch.bool)}, reference),
        ({"query_positions": torch.arange(19).flip(0)}, reference),
        ({"query_positions": torch.arange(19), "key_positions": torch.arange(19)}, flash),
        ({"key_lengths": torch.tensor([4, 19])}, flash),
        ({"distance": Plain(), "sliding_window": 3}, flash),
        ({"distance": DualChunk(8, 2)}, flash),
        ({"distance": DualChunk(8, 2), "sliding_window": 3}, reference),
    ],
    ids=str,
)
def test_auto_on_a_cpu_takes_the_fused_path_where_it_can(inputs, problems, options, module):
    tensors = inputs().make()
    rotary_attention(*tensors, **{"rotary": ROTARY, "distance": ReRoPE(4), **options})
    assert [chosen for _, chosen in problems] == [module]


def test_the_plain_rule_is_torch_attention(inputs, problems):
    """Unless something is asked for that it does not give."""
    tensors = inputs().make()
    rotary_attention(*tensors, rotary=ROTARY)
    assert problems == []
    rotary_attention(*tensors, rotary=ROTARY, return_logsumexp=True)
    assert [chosen for _, chosen in problems] == [flash]


def test_auto_never_interprets(inputs, problems, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    rotary_attention(*inputs(dtype=torch.float32).make(), rotary=ROTARY, distance=ReRoPE(4))
    assert [chosen for _, chosen in problems] == [flash]


def test_why_triton_cannot_run(inputs, monkeypatch):
    tensors = inputs().make()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def refused(message):
        with pytest.raises(ValueError, match=f"'triton' cannot run: .*{message}"):
            rotary_attention(*tensors, rotary=ROTARY, backend="triton")

    refused("expected tensors on a CUDA device, got cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    refused("expected tensors on a CUDA device, got cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "Yes")
    refused("float32, got float64")
    tensors = [x.float() for x in tensors]
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    refused(r"not installed; install ropewalk\[gpu\]")


def test_the_import_leaves_triton_alone():
    program = (
        "import sys, torch; before = set(sys.modules)\n"
        "import ropewalk.blocks.attention, ropewalk.kernels.rotary_attention\n"
        "assert not {n for n in set(sys.modules) - before if n.split('.')[0] == 'triton'}\n"
        "assert 'ropewalk.kernels.rotary_attention.triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    ("asked", "mode", "expected"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_determinism_is_torchs_unless_asked_for(inputs, problems, asked, mode, expected):
    torch.use_deterministic_algorithms(mode)
    try:
        rotary_attention(*inputs().make(), rotary=ROTARY, distance=ReRoPE(4), deterministic=asked)
    finally:
        torch.use_deterministic_algorithms(False)
    assert problems[0][0].deterministic is expected


@pytest.mark.parametrize("backend", ["flash", "reference"])
def test_gradients_on_a_cpu_are_the_same_at_every_run(inputs, rule, backend):
    runs = []
    for _ in range(2):
        tensors = inputs(queries=90, keys=120, dtype=torch.float32).make(grad=True)
        output = rotary_attention(*tensors, rotary=ROTARY, distance=rule[0], backend=backend)
        runs.append(torch.autograd.grad(output.square().sum(), tensors))
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_by_index_is_said_of_default_positions_only(inputs, problems):
    tensors = inputs().make()
    options = {"rotary": ROTARY, "distance": ReRoPE(4)}
    rotary_attention(*tensors, **options)
    rotary_attention(*tensors, key_lengths=torch.tensor([3, 19]), **options)
    rotary_attention(*tensors, key_positions=torch.arange(19), **options)
    assert [problem.by_index for problem, _ in problems] == [True, True, False]
