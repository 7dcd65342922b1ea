"""On a device, at the sizes of models: half precision as exact as steps in torch, and past 2³¹."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ropewalk.kernels.linear_scan import linear_scan, triton
from ropewalk.kernels.linear_scan.problem import Needs, Problem

pytestmark = pytest.mark.gpu

FP16, BF16, FP32, C64 = torch.float16, torch.bfloat16, torch.float32, torch.complex64
KINDS = [("diagonal", FP32), ("diagonal", BF16), ("diagonal", FP16), ("diagonal", C64),
         ("block2", FP32), ("block2", BF16), ("block2", FP16)]  # fmt: skip
# Batch, time, channels.
SIZES = {"one pass": (8, 1024, 2048), "split": (1, 8192, 64), "odd": (3, 1023, 77)}


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def floor_of(dtype: torch.dtype) -> float:
    """What single results are rounded by, of which torch's may be exact by luck."""
    return max(1e-5, torch.finfo(dtype).eps)


def directions(scan: Callable[..., Tensor], given: list[Tensor], v: Tensor) -> list[Tensor]:
    """States and all gradients."""
    leaves = [t.detach().requires_grad_() for t in given]
    states = scan(*leaves)
    return [states.detach(), *torch.autograd.grad(states, leaves, v.to(states.dtype))]


@pytest.mark.parametrize(("structure", "dtype"), KINDS, ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["on", "back"])
@pytest.mark.parametrize("size", SIZES)
def test_as_exact_as_steps_in_torch(
    size: str, reverse: bool, structure: str, dtype: torch.dtype,
    make_scan: Callable[..., Any], scan_oracle: Callable[..., Tensor],
    as_exact_as: Callable[..., None],
) -> None:  # fmt: skip
    drawn = make_scan(structure, *SIZES[size], dtype=FP32 if dtype != C64 else C64)
    given = [t.detach().to("cuda", dtype) for t in drawn.tensors]
    v = torch.randn_like(given[1])

    def steps(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
        return scan_oracle(a, b, initial, reverse=reverse)

    def kernels(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
        return linear_scan(a, b, initial, reverse=reverse, backend="triton")

    ours, peer = directions(kernels, given, v), directions(steps, given, v)
    truth = directions(steps, [t.to(wide(dtype)) for t in given], v)
    for values in zip(peer, ours, truth, strict=True):
        parts = (torch.view_as_real(t) if t.is_complex() else t for t in values)
        as_exact_as(*parts, floor=floor_of(dtype))


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_packed_sequences_of_all_lengths(
    dtype: torch.dtype, make_scan: Callable[..., Any], scan_oracle: Callable[..., Tensor],
    as_exact_as: Callable[..., None],
) -> None:  # fmt: skip
    """Split over time, with chunks that short sequences leave empty."""
    bounds = [0, 0, 1, 4000, 4001, 4001, 6048]
    drawn = make_scan("diagonal", 1, bounds[-1], 40, sequences=len(bounds) - 1, dtype=FP32)
    given = [t.detach().to("cuda", dtype) for t in drawn.tensors]
    v = torch.randn_like(given[1])
    cu = torch.tensor(bounds, device="cuda")

    def steps(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
        return scan_oracle(a, b, initial, bounds=bounds)

    def kernels(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
        return linear_scan(a, b, initial, cu_seqlens=cu, backend="triton")

    ours, peer = directions(kernels, given, v), directions(steps, given, v)
    truth = directions(steps, [t.double() for t in given], v)
    for values in zip(peer, ours, truth, strict=True):
        as_exact_as(*values, floor=floor_of(dtype))


def test_more_numbers_than_32_bits_count() -> None:
    """2³² of b and of the states: the last channels of the last steps are right."""
    batch, time, channels = 2, 2**20, 2**11
    a = torch.full((1, 1, 1), 0.5, device="cuda", dtype=BF16).expand(batch, time, channels)
    b = torch.ones(batch, time, channels, device="cuda", dtype=BF16)
    states = triton.forward(Problem(a, b))
    assert (states[:, 30:] == 2).all()
    del b
    found = triton.backward(Problem(a, states), states, states, Needs(False, True, False))
    assert found.b is not None
    assert (found.b[:, 30:-30] == 4).all()


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_results_repeat_bit_for_bit(dtype: torch.dtype, make_scan: Callable[..., Any]) -> None:
    given = [t.detach().to("cuda", dtype) for t in make_scan("diagonal", 1, 8192, 64).tensors]
    v = torch.randn_like(given[1])

    def kernels(a: Tensor, b: Tensor, initial: Tensor) -> Tensor:
        return linear_scan(a, b, initial, backend="triton")

    for one, other in zip(
        directions(kernels, given, v), directions(kernels, given, v), strict=True
    ):
        assert torch.equal(one, other)
