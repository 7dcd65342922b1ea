"""Every shipped configuration compiles for its chip, fits its shared memory and spills nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.monarch import ACTIVATIONS, triton
from ropewalk.kernels.monarch.problem import Needs, Problem
from ropewalk.kernels.monarch.triton import form
from ropewalk.kernels.monarch.triton.configurations import Configuration

pytestmark = pytest.mark.compile

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
BATCH = 16384


class Square(NamedTuple):
    """A square matrix's sizes."""

    features: int
    blocks: int
    rank: int


# 4, 16 and 64 blocks of 16 to 1024 features; ranks from 1 to where a block is square, and beyond.
TRUE_SIZES = [
    (Square(1024, 4, 64), BF16),
    (Square(2048, 4, 1), BF16),
    (Square(2048, 16, 4), BF16),
    (Square(4096, 16, 16), BF16),
    (Square(4096, 64, 1), BF16),
    (Square(1024, 4, 64), FP32),
]


def problem(
    size: Square,
    dtype: torch.dtype,
    *,
    tokens: int = BATCH,
    activation: str | None = None,
    bias: bool = False,
    block_major: bool = False,
) -> Problem:
    """A problem without numbers: nothing is run."""
    within = size.features // size.blocks

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return Problem(
        empty(tokens, size.blocks, within),
        empty(size.blocks, size.blocks * size.rank, within),
        empty(size.blocks, within, size.blocks * size.rank),
        empty(size.features) if bias else None,
        activation,
        block_major,
    )


def both_directions(p: Problem) -> None:
    """Two kernels forward, and all gradients."""
    y, hidden = triton.forward(p, True)
    needs = Needs(True, True, True, p.bias is not None)
    triton.backward(p, hidden, torch.empty_like(y), needs)


def in_two_kernels(p: Problem) -> None:
    triton.forward(p, False, "two kernels")


def in_one_kernel(p: Problem) -> None:
    triton.forward(p, False, "fused")


@pytest.fixture
def fits(compile_launches: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """`fits(problem, arch, host)`: what is launched, each of it checked."""

    def checked(p: Problem, arch: int, host: Callable[[Problem], None]) -> list[Any]:
        kernels = compile_launches(host, p, arch=arch)
        for kernel in kernels:
            kernel.check()
        return kernels

    return checked


@pytest.mark.parametrize(("size", "dtype"), TRUE_SIZES, ids=str)
def test_fits_and_spills_nothing(
    size: Square, dtype: torch.dtype, arch: int, fits: Callable[..., list[Any]]
) -> None:
    kernels = fits(problem(size, dtype), arch, both_directions)
    assert [kernel.name for kernel in kernels] == [
        *["product_kernel"] * 2,  # forward
        "outer_kernel",
        *["product_kernel"] * 2,  # their mirror
        "outer_kernel",
    ]
    for kernel in kernels:
        ptx, how = kernel.asm["ptx"], kernel.constexprs
        # Hopper multiplies by its own instructions where a tile has rows for a group of warps.
        assert ("wgmma" in ptx) == (arch == 90 and how["ROWS"] >= 64), kernel
        if dtype == BF16 and size.blocks * size.rank % 16 == 0:
            # Hidden values too are read and written by whole vectors, whatever the rank.
            assert "global.b16" not in ptx, kernel
        if not how.get("ONE_STEP", False):  # loads go on while tensor cores multiply
            assert ptx.count("cp.async.c") > 4, kernel


@pytest.mark.parametrize(
    ("activation", "dtype", "arch"),
    [
        *((activation, BF16, 90) for activation in ACTIVATIONS),
        ("gelu", BF16, 80),
        ("gelu_tanh", FP32, 90),
    ],
    ids=str,
)
def test_activations(
    activation: str, dtype: torch.dtype, arch: int, fits: Callable[..., list[Any]]
) -> None:
    p = problem(Square(4096, 16, 16), dtype, activation=activation, bias=True, block_major=True)

    def ending(given: Problem) -> None:
        y, hidden = triton.forward(given, True)
        triton.backward(given, hidden, torch.empty_like(y), Needs(False, False, False, True))

    first, second, gradient = fits(p, arch, ending)
    assert not first.constexprs["BIAS"]
    assert second.constexprs["ACTIVATION"] == activation
    assert gradient.constexprs["BIAS_GRADIENT"]


@pytest.mark.parametrize(
    ("size", "dtype", "activation"),
    [
        (Square(512, 4, 4), BF16, "gelu"),
        (Square(4096, 64, 1), BF16, "silu"),
        (Square(1024, 4, 16), FP32, "gelu"),
    ],
    ids=str,
)
def test_one_kernel(
    size: Square,
    dtype: torch.dtype,
    activation: str | None,
    arch: int,
    fits: Callable[..., list[Any]],
) -> None:
    p = problem(size, dtype, activation=activation, bias=activation is not None)
    (kernel,) = fits(p, arch, in_one_kernel)
    assert kernel.name == "fused_kernel"


@pytest.mark.parametrize(
    ("size", "dtype", "activation"),
    [(Square(4096, 16, 16), BF16, "gelu"), (Square(4096, 64, 1), FP32, None)],
    ids=str,
)
def test_chips_with_little_shared_memory(
    size: Square, dtype: torch.dtype, activation: str | None, fits: Callable[..., list[Any]]
) -> None:
    p = problem(size, dtype, activation=activation, bias=True)
    fits(p, 89, both_directions)
    fits(p, 89, in_one_kernel)


@pytest.mark.parametrize("tokens", [1, 1000])
def test_other_numbers_of_tokens(tokens: int, arch: int, fits: Callable[..., list[Any]]) -> None:
    """Few, and where the hidden values have the tokens first."""
    fits(problem(Square(4096, 16, 16), BF16, tokens=tokens), arch, both_directions)


def test_sizes_that_nothing_divides(arch: int, fits: Callable[..., list[Any]]) -> None:
    p = problem(Square(999, 9, 3), FP16, tokens=777, activation="silu", bias=True)
    fits(p, arch, both_directions)
    if arch == 90:
        fits(p, arch, in_one_kernel)


def test_float32_in_one_pass(fits: Callable[..., list[Any]]) -> None:
    """Where torch is told that TF32 will do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        kernels = fits(problem(Square(4096, 16, 16), FP32), 90, in_two_kernels)
    finally:
        torch.set_float32_matmul_precision(before)
    assert {kernel.constexprs["PRECISION"] for kernel in kernels} == {"tf32"}


TWO, ONE = Configuration(128, 128, 64, 8, 3), Configuration(64, 256, 64, 8, 2)


@pytest.mark.parametrize("features", [512, 1024, 2048, 4096])
@pytest.mark.parametrize("blocks", [4, 16, 64])
def test_two_kernels_where_hidden_values_are_no_wider_than_features(
    features: int, blocks: int
) -> None:
    rank = features // blocks**2
    for smaller in {1, rank} if rank else set():
        p = problem(Square(features, blocks, smaller), BF16)
        assert p.width <= features
        assert form.choose(p, TWO, ONE, keep_hidden=False) == "two kernels"


def test_one_kernel_where_wide_hidden_values_would_go_through_memory() -> None:
    p = problem(Square(512, 16, 16), BF16)
    assert p.width == 8 * 512
    assert form.choose(p, TWO, ONE, keep_hidden=False) == "fused"
    assert form.choose(p, TWO, ONE, keep_hidden=True) == "two kernels"


def test_what_each_form_moves_counted_by_hand() -> None:
    """256 tokens, 2 blocks of 8 features, rank 2, bfloat16; tiles of 128 × 8 and of 64 × 16."""
    p = problem(Square(16, 2, 2), BF16, tokens=256)
    two, one = Configuration(128, 8, 64, 8, 3), Configuration(64, 16, 64, 8, 2)
    factors = 2 * (2 * 2 * 2 * 8)
    memory = 256 * (16 + 2 * 8 + 16)
    assert form.two_kernels_cost(p, two) == 2 * (memory + 0.5 * (256 * (16 + 8) + 2 * factors))
    # One group of both blocks reads x once; 2 × 16 sectors of 32 bytes hold the second factor.
    cache = 2 * 256 * 16 + 4 * (2 * factors / 2 + 32 * 2 * 16)
    assert form.fused_cost(p, one) == 2 * 256 * 32 + 0.5 * cache
