"""What ships compiles for its chips, fits their shared memory and spills nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from ropewalk.kernels.adaptive_norm import triton
from ropewalk.kernels.adaptive_norm.problem import Needs, Problem, Upstream
from ropewalk.kernels.adaptive_norm.triton.configurations import configuration

pytestmark = pytest.mark.compile

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


class Form(NamedTuple):
    """What is compiled, at its true size."""

    dim: int
    dtype: torch.dtype = BF16
    norm: str | None = "layer"
    affine: bool = False
    packed: bool = False
    branch: bool = True
    rows: torch.dtype | None = None
    tokens: int = 256


def both_directions(form: Form) -> None:
    """The forward of 32 samples, and a backward with all gradients."""

    def empty(*shape: int, dtype: torch.dtype = form.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    samples, normed = 32, form.norm is not None
    batch, tokens = (1, samples * form.tokens) if form.packed else (samples, form.tokens)
    rows = empty(samples, 6 * form.dim, dtype=form.rows or form.dtype).chunk(6, dim=1)
    x = empty(batch, tokens, form.dim)
    p = Problem(
        x,
        torch.empty_like(x) if form.branch else None,
        rows[2] if form.branch else None,
        rows[0] if normed else None,
        rows[1] if normed else None,
        empty(form.dim, dtype=FP32) if form.affine else None,
        empty(form.dim, dtype=FP32) if form.affine else None,
        empty(samples + 1, dtype=torch.int32) if form.packed else None,
        form.norm,
        1e-6,
    )
    found = triton.forward(p)
    upstream = Upstream(found.residual, found.y)
    needs = Needs(
        True, form.branch, form.branch, normed, normed, form.affine, form.affine
    )  # fmt: skip
    triton.backward(p, found.statistics, upstream, needs)


FORMS = {
    "XL": Form(1152),
    "XL, RMS": Form(1152, norm="rms"),
    "XL, affine": Form(1152, affine=True),
    "XL, packed": Form(1152, packed=True),
    "XL, norm alone": Form(1152, branch=False),
    "XL, sum alone": Form(1152, norm=None),
    "XL, float32": Form(1152, FP32),
    "XL, rows in float32": Form(1152, rows=FP32),
    "S, float16": Form(384, FP16),
    "B": Form(768),
    "L": Form(1024),
    "one token": Form(1152, tokens=1),
    "2432": Form(2432),
    "3072": Form(3072),
    "4096, float32": Form(4096, FP32),
    "5120": Form(5120),
    "nothing divides": Form(1001, FP16),
    "narrow": Form(48),
}


CHIPS = [(name, 90) for name in FORMS] + [
    ("XL", 80),
    ("XL, packed", 80),
    ("XL, float32", 80),
    ("5120", 80),
    ("nothing divides", 80),
    ("XL", 89),
]


@pytest.mark.parametrize(("name", "arch"), CHIPS)
def test_fits_and_spills_nothing(
    name: str, arch: int, compile_launches: Callable[..., list[Any]]
) -> None:
    form = FORMS[name]
    kernels = compile_launches(both_directions, form, arch=arch)
    assert [kernel.name for kernel in kernels] == [
        "forward_kernel", "backward_kernel", "sums_kernel",
    ]  # fmt: skip
    for kernel in kernels:
        kernel.check()
    for kernel, direction in zip(kernels, ("forward", "backward"), strict=False):
        ptx = kernel.asm["ptx"]
        if form.dim % 128 == 0:
            words = configuration(direction, form.dim, form.dtype.itemsize).vector
            assert f"ld.global.v{words * form.dtype.itemsize // 4}.b32" in ptx
        # Rows never change hands: shared memory carries sums of warps alone.
        assert "stmatrix" not in ptx


def test_wide_rows_compile(compile_launches: Callable[..., list[Any]]) -> None:
    """Up to the widest; some of a row's numbers then leave the registers."""
    for kernel in compile_launches(both_directions, Form(8192), arch=90):
        assert kernel.shared <= 227 * 1024


@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize("size", [2, 4])
def test_blocks_hold_every_width(kernel: str, size: int) -> None:
    for dim in range(1, 4200):
        how = configuration(kernel, dim, size)
        assert how.main <= dim <= how.main + how.rest
        assert (how.rest == 0) == (how.main == dim)
        assert how.lanes * how.vector <= how.main
        assert how.rest % how.lanes == 0
        assert how.rest <= max(how.main, how.lanes)


def test_the_width_of_dit_xl_wastes_nothing() -> None:
    for kernel in ("forward", "backward"):
        how = configuration(kernel, 1152, 2)
        assert how.main + how.rest == 1152
