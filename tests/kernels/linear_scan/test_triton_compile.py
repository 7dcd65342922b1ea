"""Every shipped configuration compiles for its chip, fits its shared memory and spills nothing."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.linear_scan import triton
from ropewalk.kernels.linear_scan.problem import Needs, Problem

pytestmark = pytest.mark.compile

BF16, FP16, FP32, C64 = torch.bfloat16, torch.float16, torch.float32, torch.complex64
FULL = (8, 2048, 2048)
LONG = (1, 65536, 64)
ALL = Needs(True, True, True)


def problem(
    structure: str,
    dtype: torch.dtype,
    size: tuple[int, int, int],
    *,
    initial: bool = True,
    reverse: bool = False,
    sequences: int | None = None,
) -> Problem:
    """A problem without numbers: nothing is run."""
    batch, time, channels = size
    parts, rows = ((2,), (2, 2)) if structure == "block2" else ((), ())
    cu = None
    if sequences is not None:
        cu = torch.empty(sequences + 1, dtype=torch.int32, device="meta")

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return Problem(
        empty(batch, time, *rows, channels),
        empty(batch, time, *parts, channels),
        empty(sequences or batch, *parts, channels) if initial else None,
        reverse,
        cu,
    )


def both_directions(p: Problem) -> None:
    states = triton.forward(p)
    triton.backward(p, states, torch.empty_like(states), ALL)


@pytest.fixture
def fits(compile_launches: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """`fits(problem, arch)`: what is launched forward and backward, each of it checked."""

    def checked(p: Problem, arch: int) -> list[Any]:
        kernels = compile_launches(both_directions, p, arch=arch)
        for kernel in kernels:
            kernel.check()
        return kernels

    return checked


@pytest.mark.parametrize(
    ("structure", "dtype", "arch"),
    [
        ("diagonal", FP32, 90),
        ("diagonal", BF16, 90),
        ("diagonal", C64, 90),
        ("block2", FP16, 90),
    ],
    ids=str,
)
def test_one_pass(
    structure: str, dtype: torch.dtype, arch: int, fits: Callable[..., list[Any]]
) -> None:
    kernels = fits(problem(structure, dtype, FULL), arch)
    assert [kernel.name for kernel in kernels] == ["scan_kernel", "adjoint_kernel"]
    for kernel in kernels:
        if narrow := {C64: "b32", BF16: "b16"}.get(dtype):
            # The parts of a number, and neighbours in half precision, are moved together.
            assert not re.search(rf"(ld|st)\.global(\.L1\S*)?\.{narrow} ", kernel.asm["ptx"])


@pytest.mark.parametrize(
    ("structure", "dtype", "arch"),
    [
        ("diagonal", BF16, 80),
        ("diagonal", C64, 89),
        ("block2", FP32, 80),
    ],
    ids=str,
)
def test_split_over_time(
    structure: str, dtype: torch.dtype, arch: int, fits: Callable[..., list[Any]]
) -> None:
    kernels = fits(problem(structure, dtype, LONG, sequences=3), arch)
    assert [kernel.name for kernel in kernels] == [
        *["summary_kernel", "scan_kernel", "scan_kernel"],
        *["summary_kernel", "scan_kernel", "adjoint_kernel"],
    ]


@pytest.mark.parametrize("structure", ["diagonal", "block2"])
def test_one_step_of_one_channel(structure: str, fits: Callable[..., list[Any]]) -> None:
    """Numbers that are 1 are constants of a launch."""
    fits(problem(structure, FP32, (1, 1, 1), initial=False), 89)


def test_many_rows_are_under_way(fits: Callable[..., list[Any]]) -> None:
    """Loads of a tile come before the walk: none waits for the one before."""
    scan, _ = fits(problem("diagonal", FP32, FULL), 90)
    assert scan.registers <= 128, f"{scan}; four programs are to fit a processor"
    assert "local" not in scan.asm["ptx"]
