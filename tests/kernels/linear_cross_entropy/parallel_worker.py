"""One of two ranks: compares its slice of the vocabulary with the whole; run by test_parallel."""

import os
import sys

import pytest
import torch
import torch.distributed as dist

from ropewalk.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    vocabulary_parallel_linear_cross_entropy,
)

VOCABULARY, DIM = 33, 16
OPTIONS = [
    {},
    {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 3.0, "logit_scale": 0.7},
    {"weight_per_class": torch.linspace(0.1, 2.0, VOCABULARY), "label_smoothing": 0.2},
    {"shift": True, "return_logsumexp": True, "reduction": "none"},
    {"exact": False, "return_logsumexp": True, "reduction": "sum"},
]


def draw(dtype=torch.float64):
    """The same on both ranks."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, DIM, generator=generator, dtype=torch.float64)
    weight = torch.randn(VOCABULARY, DIM, generator=generator, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCABULARY, (2, 9), generator=generator)
    targets[0, ::3] = -100
    return *(x.to(dtype).requires_grad_() for x in (hidden, weight, bias)), targets


def flat(result):
    outputs = result if isinstance(result, tuple) else (result,)
    return torch.cat([output.reshape(-1) for output in outputs])


def compare(rank, *, cuts, options, dtype=torch.float64, tolerance=1e-12, place=None, step=None):
    """Values and gradients, with another upstream gradient for each output."""
    hidden, weight, bias, targets = draw(dtype)
    here = slice(cuts[rank], cuts[rank + 1])
    whole = flat(linear_cross_entropy(hidden, weight, targets, bias=bias, **options))
    upstream = torch.linspace(0.5, 1.5, whole.numel(), dtype=whole.dtype)
    expected = torch.autograd.grad(whole, (hidden, weight, bias), upstream)
    slices = [x.detach()[here].clone().requires_grad_() for x in (weight, bias)]
    parallel = step or vocabulary_parallel_linear_cross_entropy
    part = flat(parallel(hidden, slices[0], targets, bias=slices[1], **(place or {}), **options))
    gradients = torch.autograd.grad(part, (hidden, *slices), upstream)
    torch.testing.assert_close(part, whole, rtol=tolerance, atol=tolerance)
    for got, want in zip(
        gradients, (expected[0], expected[1][here], expected[2][here]), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def expect(error, words, call):
    with pytest.raises(error, match=words):
        call()


def refusals(rank):
    hidden, weight, _, targets = draw()
    everything = {"vocabulary_start": 0, "vocabulary": VOCABULARY}

    def call(**given):
        return lambda: vocabulary_parallel_linear_cross_entropy(hidden, weight, targets, **given)

    expect(RuntimeError, "each row in exactly one rank's", call(**everything))
    # Rows are missing where no target lies.
    gap = {"vocabulary_start": (0, 50)[rank], "vocabulary": 90}
    expect(RuntimeError, "each row in exactly one rank's", call(**gap))
    expect(ValueError, "expected both or neither", call(vocabulary_start=0))
    expect(ValueError, "expected 0 to 7", call(vocabulary_start=8, vocabulary=40))
    expect(TypeError, "temperature", call(temperature=2.0, **everything))
    expect(ValueError, "from 0 to 65", lambda: vocabulary_parallel_linear_cross_entropy(
        hidden, weight, targets + 66
    ))  # fmt: skip


def main(case, meeting, rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    if case == "losses":
        for options in OPTIONS:
            compare(rank, cuts=(0, 17, VOCABULARY), options=options)
    elif case == "slices":
        for cut in (1, 20, 32):
            for place in (None, {"vocabulary_start": (0, cut)[rank], "vocabulary": VOCABULARY}):
                compare(rank, cuts=(0, cut, VOCABULARY), options=OPTIONS[1], place=place)
    elif case == "half":
        compare(rank, cuts=(0, 17, VOCABULARY), options={}, dtype=torch.bfloat16, tolerance=2e-2)
    elif case == "compiled":
        step = torch.compile(
            vocabulary_parallel_linear_cross_entropy, fullgraph=True, backend="aot_eager"
        )
        place = {"vocabulary_start": (0, 17)[rank], "vocabulary": VOCABULARY}
        compare(rank, cuts=(0, 17, VOCABULARY), options=OPTIONS[1], place=place, step=step)
    else:
        refusals(rank)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.stdout.flush()
    # Without the interpreter's end, which at times aborts in a thread of the process group.
    os._exit(0)
