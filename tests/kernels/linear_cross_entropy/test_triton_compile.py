"""Every shipped configuration compiles for its chip, fits its shared memory and spills nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.linear_cross_entropy import triton
from ropewalk.kernels.linear_cross_entropy.filter import map_shape
from ropewalk.kernels.linear_cross_entropy.problem import Needs, Problem, Upstream
from ropewalk.kernels.linear_cross_entropy.triton import backward

pytestmark = pytest.mark.compile

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
GEMMA = (8192, 2304, 256000)
ODD = (1000, 250, 50257)

VARIANTS: dict[str, dict[str, Any]] = {
    "light": {},
    "light, skipping": {"exact": False},
    "capped": {"softcap": 30.0},
    "heavy": {"softcap": 30.0, "bias": True, "summed": True},
    "heavy, skipping": {"softcap": 30.0, "bias": True, "summed": True, "exact": False},
}
# Element, (tokens, dim, vocabulary), variant.
CASES: list[tuple[torch.dtype, tuple[int, int, int], str]] = [
    (BF16, GEMMA, "light"),
    (BF16, GEMMA, "capped"),
    (BF16, GEMMA, "heavy"),
    (BF16, GEMMA, "heavy, skipping"),
    (BF16, ODD, "light, skipping"),
    (BF16, ODD, "heavy"),
    (FP16, GEMMA, "heavy, skipping"),
    (FP16, ODD, "heavy"),
    (FP32, GEMMA, "heavy"),
    (FP32, ODD, "heavy, skipping"),
]
FEW: list[tuple[torch.dtype, tuple[int, int, int], str]] = [
    (BF16, (1, 2304, 256000), "heavy, skipping"),
    (BF16, (64, 2304, 256000), "heavy, skipping"),
    (FP32, (1, 2304, 50257), "heavy"),
    (FP32, (64, 250, 50257), "heavy, skipping"),
]
SMALL: list[tuple[torch.dtype, tuple[int, int, int], str]] = [
    (BF16, GEMMA, "heavy, skipping"),
    (FP32, ODD, "heavy, skipping"),
]


def problem(
    dtype: torch.dtype,
    size: tuple[int, int, int],
    *,
    bias: bool = False,
    summed: bool = False,
    softcap: float | None = None,
    exact: bool = True,
) -> Problem:
    """A problem without numbers: nothing is run."""
    tokens, dim, vocabulary = size

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return Problem(
        empty(tokens, dim),
        empty(vocabulary, dim),
        empty(tokens, dtype=torch.int64),
        empty(vocabulary) if bias else None,
        empty(vocabulary, dtype=torch.float32) if summed else None,
        1.0,
        softcap,
        exact,
    )


def gradients(p: Problem) -> None:
    vector = torch.empty(p.tokens, device="meta")
    shape = map_shape(p.tokens, p.vocabulary)
    live = None if p.exact else torch.empty(shape, dtype=torch.uint8, device="meta")
    upstream = Upstream(vector, vector, None if p.sum_weights is None else vector)
    triton.gradients(p, vector, live, upstream, Needs(True, True, p.bias is not None))


@pytest.fixture(autouse=True)
def two_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk and the last: what lies between them is launched as the first is."""
    every = backward.spans
    monkeypatch.setattr(
        backward, "spans", lambda count, size: sorted({(s := every(count, size))[0], s[-1]})
    )


def compiled(
    compile_launches: Callable[..., list[Any]], p: Problem, arch: int
) -> dict[str, list[Any]]:
    """What forward and backward launch, by kernel, each of them checked."""
    kernels: dict[str, list[Any]] = {}
    for direction in (triton.statistics, gradients):
        for kernel in compile_launches(direction, p, arch=arch):
            kernel.check()
            kernels.setdefault(kernel.name, []).append(kernel)
    expected = {"statistics_kernel", "merge_kernel", "gradient_kernel"}
    skipping = set() if p.exact else {"live_kernel", "live_product_kernel"}
    assert kernels.keys() == expected | skipping
    return kernels


@pytest.mark.parametrize(("dtype", "size", "variant"), CASES, ids=str)
def test_fits_and_spills_nothing(
    dtype: torch.dtype,
    size: tuple[int, int, int],
    variant: str,
    arch: int,
    compile_launches: Callable[..., list[Any]],
) -> None:
    kernels = compiled(compile_launches, problem(dtype, size, **VARIANTS[variant]), arch)
    for name in ("statistics_kernel", "gradient_kernel", "live_product_kernel"):
        for kernel in kernels.get(name, []):
            # Loads go on while tensor cores multiply, on Hopper by its own instructions.
            assert kernel.asm["ptx"].count("cp.async.c") > 4, kernel
            assert ("wgmma" in kernel.asm["ptx"]) == (arch == 90), kernel


@pytest.mark.parametrize(("dtype", "size", "variant"), FEW, ids=str)
def test_few_tokens(
    dtype: torch.dtype,
    size: tuple[int, int, int],
    variant: str,
    arch: int,
    compile_launches: Callable[..., list[Any]],
) -> None:
    compiled(compile_launches, problem(dtype, size, **VARIANTS[variant]), arch)


@pytest.mark.parametrize(("dtype", "size", "variant"), SMALL, ids=str)
def test_chips_with_little_shared_memory(
    dtype: torch.dtype,
    size: tuple[int, int, int],
    variant: str,
    compile_launches: Callable[..., list[Any]],
) -> None:
    compiled(compile_launches, problem(dtype, size, **VARIANTS[variant]), 89)


def test_weights_in_columns(arch: int, compile_launches: Callable[..., list[Any]]) -> None:
    p = problem(BF16, (2304, 512, 32000))
    weight = torch.empty(512, 32000, dtype=BF16, device="meta").T
    p = Problem(p.hidden, weight, p.targets, None, None, 1.0, None, True)
    compiled(compile_launches, p, arch)


def test_float32_in_one_pass(arch: int, compile_launches: Callable[..., list[Any]]) -> None:
    """Where torch is told that TF32 will do."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        kernels = compiled(
            compile_launches, problem(FP32, ODD, **VARIANTS["heavy, skipping"]), arch
        )
    finally:
        torch.set_float32_matmul_precision(before)
    assert kernels["gradient_kernel"][0].constexprs["PRECISION"] == "tf32"


def test_one_chunk_of_tokens_needs_no_accumulator_of_the_weights_gradient() -> None:
    """So that the workspace and the hidden states' sum are all there is beside the gradients."""
    from ropewalk.kernels.linear_cross_entropy import chunks
    from ropewalk.kernels.linear_cross_entropy.triton.sizes import (
        gradient_chunks,
        statistics_tokens,
    )

    tokens, dim, vocabulary = GEMMA
    sizes = gradient_chunks(tokens, vocabulary, 2)
    assert sizes.tokens == tokens
    held = sizes.tokens * sizes.columns * 2
    assert held <= chunks.WORKSPACE
    extra = held + tokens * dim * 4 - tokens * dim * 2  # the sum gives way to the gradient
    assert extra <= 0.1 * 2 * dim * (tokens + vocabulary)
    for count in (1, 8192, 131072, 2**20):
        for columns in (1, 50257, 256000):
            sizes = gradient_chunks(count, columns, 2)
            assert sizes.tokens * sizes.columns * 2 <= chunks.WORKSPACE
            tiles = -(-columns // 256)
            assert 2 * 4 * tiles * statistics_tokens(count, tiles, 2) <= chunks.WORKSPACE
