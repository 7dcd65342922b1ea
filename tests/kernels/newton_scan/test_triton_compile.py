"""Every shipped configuration compiles for its chip, fits its shared memory and spills nothing."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.newton_scan import triton
from ropewalk.kernels.newton_scan.cells import CELLS
from ropewalk.kernels.newton_scan.problem import Needs, Options, Problem
from ropewalk.kernels.newton_scan.triton.configurations import in_windows
from ropewalk.kernels.newton_scan.triton.crossover import choose

pytestmark = pytest.mark.compile

BF16, FP32 = torch.bfloat16, torch.float32
MANY, FEW = (8, 2048, 2048), (1, 16384, 64)


def problem(
    cell: str, dtype: torch.dtype, size: tuple[int, int, int], sequences: int | None = None
) -> Problem:
    """A problem without numbers: nothing is run."""
    batch, time, channels = size
    formulas = CELLS[cell]

    def empty(*shape: int, like: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=like, device="meta")

    return Problem(
        empty(batch, time, len(formulas.gates), channels),
        empty(len(formulas.rows), channels, like=FP32),
        empty(sequences or batch, *formulas.state_shape(channels)),
        cell,
        None if sequences is None else empty(sequences + 1, like=torch.int32),
    )


@pytest.fixture
def fits(compile_launches: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """`fits(problem, algorithm, arch)`: what is launched both ways, each of it checked."""

    def both_directions(p: Problem, options: Options) -> None:
        states = triton.forward(p, options).states
        triton.backward(p, states, torch.empty_like(states), Needs(True, True, True), options)

    def checked(p: Problem, arch: int, algorithm: str, window: int | None = None) -> list[Any]:
        options = Options(algorithm, window)
        kernels = compile_launches(both_directions, p, options, arch=arch)
        assert [kernel.name for kernel in kernels] == [f"{algorithm}_kernel", "adjoint_kernel"]
        for kernel in kernels:
            kernel.check()
        return kernels

    return checked


@pytest.mark.parametrize("cell", ["tanh", "gru"])
def test_many_chains_in_windows(cell: str, fits: Callable[..., list[Any]]) -> None:
    fits(problem(cell, BF16, MANY), 90, "newton")


@pytest.mark.parametrize("cell", ["tanh", "lstm"])
def test_few_chains_in_windows(cell: str, fits: Callable[..., list[Any]]) -> None:
    forward, _ = fits(problem(cell, FP32, FEW, sequences=2), 80, "newton")
    assert forward.constexprs["GROUPS"] * forward.constexprs["ROWS"] >= 256


@pytest.mark.parametrize(("cell", "arch"), [("gru", 90), ("lstm", 80)])
def test_steps_in_turn(cell: str, arch: int, fits: Callable[..., list[Any]]) -> None:
    fits(problem(cell, FP32, MANY), arch, "sequential")


@pytest.mark.parametrize("algorithm", ["newton", "sequential"])
def test_one_step_of_one_channel(algorithm: str, fits: Callable[..., list[Any]]) -> None:
    """Numbers that are 1 are constants of a launch."""
    fits(problem("tanh", FP32, (1, 1, 1)), 89, algorithm)


def test_auto_takes_windows_where_chains_are_few_and_time_is_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(
        multi_processor_count=132
    ))  # fmt: skip
    device = torch.device("meta")
    for cell in CELLS:
        for sequences, time, channels, expected in [
            (1, 16384, 64, "newton"),
            (1, 8, 64, "sequential"),
            (256, 2048, 4096, "sequential"),
        ]:
            how = in_windows(cell, sequences, time, channels, device, None)
            assert choose(cell, how, sequences * channels, time, device) == expected
