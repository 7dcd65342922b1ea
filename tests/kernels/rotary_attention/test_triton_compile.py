"""Every shipped configuration compiles for its chip, fits its shared memory and spills nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ropewalk.blocks.rotary import DualChunk, Plain, ReRoPE
from ropewalk.kernels.rotary_attention.problem import Problem

pytest.importorskip("triton")

from ropewalk.kernels.rotary_attention.triton import launch

pytestmark = pytest.mark.compile

TOKENS, HEADS, KV_HEADS = 4096, 32, 8

HALF, SINGLE = torch.bfloat16, torch.float32
# By number of branches.
RULES = Plain(), ReRoPE(1024), DualChunk(1024, 64)

HEAVY = {"branches": 3, "unit": 64, "sliding_window": 4096, "by_index": False, "softcap": 30.0}
VARIANTS: dict[str, dict[str, Any]] = {
    # What a configuration must bear: everything at once that its row of the table allows.
    "light": {"branches": 2, "sliding_window": 4096, "packed": True, "sinks": True},
    "not causal": {"branches": 2, "causal": False},
    "masked": {**HEAVY, "sinks": True, "key_lengths": True, "mask": True},
    "packed": {**HEAVY, "sinks": True, "packed": True},
}
# Element, width of a head, of a value, variant.
CASES: list[tuple[torch.dtype, int, int, str]] = [
    *(
        (dtype, width, width, name)
        for dtype in (HALF, SINGLE)
        for width in (64, 128, 256)
        for name in ("light", "masked", "packed")
    ),
    # Narrower than the narrowest that the tables name.
    (HALF, 32, 32, "light"),
    (HALF, 32, 32, "packed"),
    (SINGLE, 32, 32, "light"),
    (SINGLE, 32, 32, "masked"),
    (HALF, 128, 128, "not causal"),
    (torch.float16, 128, 128, "light"),
    # Dimensions masked off; in float32 they make heads awkward.
    (HALF, 72, 72, "packed"),
    (HALF, 80, 80, "masked"),
    (HALF, 96, 96, "light"),
    (SINGLE, 72, 72, "light"),
    (SINGLE, 80, 80, "masked"),
    (SINGLE, 96, 96, "packed"),
    (HALF, 192, 128, "light"),
    (HALF, 192, 128, "packed"),
    # Rows off multiples of 16 bytes, which are copied to such.
    (HALF, 36, 36, "packed"),
    (HALF, 134, 134, "packed"),
    (HALF, 196, 196, "packed"),
    (SINGLE, 134, 134, "packed"),
    (SINGLE, 198, 198, "packed"),
    # Awkward: values wider than keys.
    (HALF, 32, 64, "masked"),
    (HALF, 64, 128, "packed"),
    (HALF, 128, 256, "packed"),
]
SMALL_CASES: list[tuple[torch.dtype, int, int, str]] = [
    (HALF, 32, 32, "packed"),
    (HALF, 64, 64, "light"),
    (HALF, 128, 128, "light"),
    (HALF, 64, 64, "packed"),
    (HALF, 128, 128, "packed"),
    (HALF, 192, 128, "packed"),
    (SINGLE, 64, 64, "masked"),
    (SINGLE, 128, 128, "masked"),
    (SINGLE, 256, 256, "masked"),
]


def problem(
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    *,
    branches: int = 1,
    unit: int = 1,
    causal: bool = True,
    sliding_window: int | None = None,
    packed: bool = False,
    sinks: bool = False,
    by_index: bool = True,
    softcap: float | None = None,
    key_lengths: bool = False,
    mask: bool = False,
) -> Problem:
    """A problem without numbers: nothing is run."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    index = None if by_index else empty(1, TOKENS, dtype=torch.int64)
    cu = empty(5, dtype=torch.int32) if packed else None
    return Problem(
        query=empty(1, HEADS, TOKENS, head_dim),
        key=empty(1, KV_HEADS, TOKENS, head_dim),
        value=empty(1, KV_HEADS, TOKENS, value_dim),
        inverse_frequencies=empty(head_dim // 2, dtype=torch.float32),
        factor=1.0,
        query_positions=index,
        key_positions=index,
        query_factor=None,
        sinks=empty(HEADS) if sinks else None,
        key_lengths=empty(1, dtype=torch.int32) if key_lengths else None,
        attention_mask=empty(1, 1, TOKENS, TOKENS) if mask else None,
        branches=RULES[branches - 1].branches,
        edges=RULES[branches - 1].edges,
        unit=unit,
        layout="half",
        causal=causal,
        scale=head_dim**-0.5,
        sliding_window=sliding_window,
        softcap=softcap,
        deterministic=True,
        cu_seqlens_query=cu,
        cu_seqlens_key=cu,
    )


def backward(p: Problem) -> None:
    output = p.query.new_empty(*p.query.shape[:-1], p.value.shape[-1])
    statistics = torch.empty(p.query.shape[:-1], device="meta")
    launch.backward(p, output, statistics, output, statistics)


@pytest.mark.parametrize("direction", [launch.forward, backward], ids=["forward", "backward"])
@pytest.mark.parametrize(("dtype", "head_dim", "value_dim", "variant"), CASES, ids=str)
def test_fits_and_spills_nothing(
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    variant: str,
    direction: Callable[[Problem], Any],
    arch: int,
    compile_launches: Callable[..., list[Any]],
) -> None:
    p = problem(dtype, head_dim, value_dim, **VARIANTS[variant])
    for compiled in compile_launches(direction, p, arch=arch):
        compiled.check()


@pytest.mark.parametrize("direction", [launch.forward, backward], ids=["forward", "backward"])
@pytest.mark.parametrize(("dtype", "head_dim", "value_dim", "variant"), SMALL_CASES, ids=str)
def test_chips_with_little_shared_memory(
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    variant: str,
    direction: Callable[[Problem], Any],
    compile_launches: Callable[..., list[Any]],
) -> None:
    p = problem(dtype, head_dim, value_dim, **VARIANTS[variant])
    for compiled in compile_launches(direction, p, arch=89):
        compiled.check()


@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=str)
def test_heads_of_a_group_apart(
    dtype: torch.dtype, arch: int, compile_launches: Callable[..., list[Any]]
) -> None:
    """The atomic form of the backward, which a single short sequence takes."""
    p = problem(dtype, 128, 128, branches=2)
    short = {name: getattr(p, name)[:, :, :256] for name in ("query", "key", "value")}
    p = replace(p, **short, deterministic=False)
    kernels = compile_launches(backward, p, arch=arch)
    assert any(compiled.constexprs.get("SPLIT") for compiled in kernels)
    for compiled in kernels:
        compiled.check()
