"""What is launched at a model's sizes compiles for every chip, and spills nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.gated_mlp import ACTIVATIONS, triton
from ropewalk.kernels.gated_mlp.problem import Form
from ropewalk.kernels.gated_mlp.triton.configurations import configuration

pytestmark = pytest.mark.compile


def both_directions(projected: torch.Tensor, form: Form) -> None:
    activated = triton.forward(projected, form)
    triton.backward(projected, torch.empty_like(activated), form, True)


def projection(rows: int, width: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(rows, width, dtype=dtype, device="meta")


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fits_and_moves_whole_vectors(
    activation: str, gated: bool, arch: int, compile_launches: Callable[..., list[Any]]
) -> None:
    """DiT-XL/2: 32 images of 256 tokens, 3072 features."""
    projected = projection(8192, 3072 * (1 + gated))
    kernels = compile_launches(both_directions, projected, Form(activation, gated), arch=arch)
    assert [kernel.name for kernel in kernels] == ["activate_kernel", "activate_backward_kernel"]
    for kernel in kernels:
        kernel.check()
        ptx = kernel.asm["ptx"]
        assert ".v4.b32" in ptx, kernel  # 16 bytes at a time
        assert "global.b16" not in ptx, kernel
        assert "global.v2.b16" not in ptx, kernel


@pytest.mark.parametrize(
    ("rows", "hidden", "dtype"),
    [
        (8192, 4608, torch.float32),
        (777, 999, torch.float16),
        (1, 170, torch.bfloat16),
        (2**22, 3072, torch.bfloat16),  # more numbers than 32 bits count
    ],
    ids=str,
)
def test_other_sizes(
    rows: int,
    hidden: int,
    dtype: torch.dtype,
    arch: int,
    compile_launches: Callable[..., list[Any]],
) -> None:
    projected = projection(rows, 2 * hidden, dtype)
    for kernel in compile_launches(both_directions, projected, Form("silu", True), arch=arch):
        kernel.check()


def test_a_chip_with_little_shared_memory(compile_launches: Callable[..., list[Any]]) -> None:
    for kernel in compile_launches(
        both_directions, projection(8192, 6144), Form("gelu_tanh", True), arch=89
    ):
        kernel.check()


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("hidden", [1, 7, 64, 170, 768, 1024, 1536, 3072, 4608, 12288])
@pytest.mark.parametrize("rows", [1, 6, 256, 8192, 2**20])
def test_tiles_cover_all_and_waste_little(rows: int, hidden: int, kernel: str) -> None:
    sizes = configuration(rows, hidden, kernel)
    across = -(-hidden // sizes.columns)
    assert sizes.programs(rows, hidden) * sizes.rows * sizes.columns >= rows * hidden
    assert sizes.columns <= 128 or across * sizes.columns * 16 <= hidden * 17
    assert sizes.rows * sizes.columns <= 4096
