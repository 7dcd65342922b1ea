"""The proofs themselves: what is fine passes them, and what is not is caught."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl


@triton.jit
def double_kernel(source, result, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(result + at, 2 * tl.load(source + at, mask=at < size), mask=at < size)


@triton.jit
def product_kernel(a, b, result, steps, SIZE: tl.constexpr):
    tile = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    total = tl.zeros([SIZE, SIZE], dtype=tl.float32)
    for step in range(steps):
        at = step * SIZE * SIZE + tile
        total += tl.dot(tl.load(a + at), tl.load(b + at))
    tl.store(result + tile, total)


def double(source: torch.Tensor, block: int) -> torch.Tensor:
    result = torch.empty_like(source)
    grid = (triton.cdiv(source.numel(), block),)
    double_kernel[grid](source, result, source.numel(), BLOCK=block)
    return result


def test_kernels_run_where_the_fixture_says(kernel_device: torch.device) -> None:
    source = torch.arange(37.0, device=kernel_device)
    assert torch.equal(double(source, 16), source * 2)


@pytest.mark.interpret
def test_unwritten_memory_shows(uninitialised: None) -> None:
    source = torch.arange(37.0)
    result = torch.empty_like(source)
    double_kernel[(2,)](source, result, 37, BLOCK=16)
    assert torch.equal(result.isnan(), torch.arange(37) >= 32)
    assert torch.empty(3).isnan().all()
    assert source.new_empty(3).isnan().all()
    assert torch.empty(3, dtype=torch.int32).dtype == torch.int32


TYPES = {"a": "*fp32", "b": "*fp32", "result": "*fp32", "steps": "i32"}


@pytest.mark.compile
def test_a_kernel_that_fits_passes(compile_kernel: Callable[..., Any], arch: int) -> None:
    compiled = compile_kernel(product_kernel, TYPES, {"SIZE": 32}, arch=arch)
    compiled.check()
    assert compiled.shared > 0
    assert compiled.registers > 0
    assert f".target sm_{arch}" in compiled.asm["ptx"]


@pytest.mark.compile
def test_spills_are_caught(compile_kernel: Callable[..., Any], arch: int) -> None:
    # 64² sums in one warp are 128 a thread, of whom 64 find a register.
    options = {"num_warps": 1, "num_stages": 1, "maxnreg": 64}
    compiled = compile_kernel(product_kernel, TYPES, {"SIZE": 64}, arch=arch, **options)
    assert compiled.spill_bytes > 0
    with pytest.raises(AssertionError, match="bytes spilled"):
        compiled.check()


@pytest.mark.compile
def test_too_much_shared_memory_is_caught(compile_kernel: Callable[..., Any], arch: int) -> None:
    compiled = compile_kernel(product_kernel, TYPES, {"SIZE": 64}, arch=arch, num_stages=9)
    assert compiled.shared > 227 * 1024
    with pytest.raises(AssertionError, match="at most"):
        compiled.check()


@pytest.mark.compile
@pytest.mark.parametrize("size", [1600, 1601])
def test_launches_are_compiled_as_they_would_be(
    compile_launches: Callable[..., Any], arch: int, size: int
) -> None:
    (compiled,) = compile_launches(double, torch.empty(size, device="meta"), 1024, arch=arch)
    compiled.check()
    # Neighbouring elements are loaded at once only if the mask is known to be alike for them.
    assert bool(re.search(r"ld\.global[.\w]*\.v4", compiled.asm["ptx"])) == (size % 16 == 0)


def test_half_precision_is_judged_by_torch(as_exact_as: Callable[..., None]) -> None:
    truth = torch.tensor([1.0, -torch.inf, 3.0], dtype=torch.float64)
    peer = truth + torch.tensor([0.0, 0.0, 1e-2])
    as_exact_as(peer, truth + torch.tensor([1.9e-2, 0.0, 0.0]), truth)
    wrong = (
        truth + torch.tensor([2.1e-2, 0.0, 0.0]),
        truth + torch.tensor([torch.nan, 0.0, 0.0]),
        torch.tensor([1.0, 0.0, 3.0]),
        torch.tensor([1.0, torch.nan, 3.0]),
    )
    for ours in wrong:
        with pytest.raises(AssertionError):
            as_exact_as(peer, ours, truth)
    with pytest.raises(AssertionError, match="shape"):
        as_exact_as(peer, truth[:2], truth)
