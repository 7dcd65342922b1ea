"""Every shipped configuration compiles for its chip, fits its shared memory and spills nothing."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.context_merge import triton
from ropewalk.kernels.context_merge.problem import POOLINGS, Problem

pytestmark = pytest.mark.compile

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
LLAMA = (1, 32, 128256)
KERNELS = ["statistics_kernel", "threshold_kernel", "merge_kernel", "normalise_kernel"]


def problem(
    dtype: torch.dtype,
    size: tuple[int, int, int],
    *,
    pooling: str = "min_entropy",
    top_p: float = 0.95,
    given: bool = False,
    renormalise: bool = False,
) -> Problem:
    """A problem without numbers, two views of one model output: nothing is run."""
    questions, contexts, vocabulary = size
    output = torch.empty(questions, contexts + 1, vocabulary, dtype=dtype, device="meta")
    log_prior = torch.empty(questions, contexts, device="meta") if given else None
    previous = torch.empty(questions, dtype=torch.int64, device="meta") if given else None
    return Problem(
        output[:, 1:], output[:, 0], log_prior, previous, 0.25, 0.1, top_p, pooling, renormalise
    )


def compiled(compile_launches: Callable[..., list[Any]], p: Problem, arch: int) -> dict[str, Any]:
    """What a merge launches, by kernel, each of them checked."""
    kernels = compile_launches(triton.merge, p, arch=arch)
    assert [kernel.name for kernel in kernels] == KERNELS
    for kernel in kernels:
        kernel.check()
    return {kernel.name: kernel for kernel in kernels}


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_fits_and_spills_nothing(dtype, arch, compile_launches):
    kernels = compiled(compile_launches, problem(dtype, LLAMA), arch)
    for name, vector in (("statistics", "v4"), ("threshold", "v[24]"), ("merge", "v4")):
        # Sixteen bytes at a time, and of listed blocks eight at least.
        ptx = kernels[f"{name}_kernel"].asm["ptx"]
        assert re.search(rf"ld\.global[.\w]*\.{vector}", ptx), name


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_pooling(pooling, arch, compile_launches):
    p = problem(BF16, (8, 32, 128256), pooling=pooling, given=True, renormalise=True)
    compiled(compile_launches, p, arch)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(BF16, (1, 4, 264)), (FP32, (3, 1, 264)), (FP16, (2, 7, 50257)), (FP32, (1, 100, 256000))],
    ids=str,
)
def test_other_sizes(dtype, size, arch, compile_launches):
    compiled(compile_launches, problem(dtype, size), arch)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_sizes_of_one_are_constants(pooling, arch, compile_launches):
    compiled(compile_launches, problem(FP32, (1, 1, 1), pooling=pooling, given=True), arch)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_nothing_truncated(dtype, arch, compile_launches):
    compiled(compile_launches, problem(dtype, LLAMA, top_p=1.0), arch)


def test_chips_with_little_shared_memory(compile_launches):
    compiled(compile_launches, problem(FP32, LLAMA, pooling="mean"), 89)
