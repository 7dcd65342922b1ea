"""Every configuration of decoding compiles for its chip, fits its shared memory, spills nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ropewalk.blocks.rotary import DualChunk, Plain, ReRoPE, SelfExtend
from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.protocols import DistanceRule

pytest.importorskip("triton")

from ropewalk.kernels.rotary_attention.triton import decode as module

pytestmark = pytest.mark.compile

KEYS, KV_HEADS, GROUPS = 131_072, 8, 4
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"rule": Plain(), "layout": "interleaved"},
    "rerope": {"rule": ReRoPE(4096), "key_lengths": True},
    "many": {"rule": ReRoPE(4096), "queries": 16},
    # Keys turned in every branch, at positions that are divided.
    "grouped": {"rule": SelfExtend(group=8, window=4096), "queries": 16, "key_lengths": True},
    "chunks": {"rule": DualChunk(4096, 512), "queries": 16},
    # Everything at once.
    "heavy": {
        "rule": DualChunk(64, 8),
        "queries": 16,
        "sliding_window": 4096,
        "rotary_fraction": 0.5,
        "by_index": False,
        "softcap": 30.0,
        "key_lengths": True,
        "mask": True,
    },
}
CASES = [
    ("plain", 2, 128),
    *(("rerope", *shape) for shape in module.CONFIGURATIONS["sm_90"]),
    *(("many", *shape) for shape in module.CONFIGURATIONS["sm_90"]),
    *(("grouped", *shape) for shape in module.CONFIGURATIONS["sm_90"]),
    ("chunks", 2, 128),
    ("heavy", 2, 128),
    ("heavy", 2, 256),
    ("heavy", 4, 64),
]


def problem(
    dtype: torch.dtype,
    head_dim: int,
    *,
    rule: DistanceRule,
    queries: int = 1,
    layout: Any = "half",
    rotary_fraction: float = 1.0,
    sliding_window: int | None = None,
    by_index: bool = True,
    softcap: float | None = None,
    key_lengths: bool = False,
    mask: bool = False,
) -> Problem:
    """A cache of full size without numbers: nothing is run, and nothing can be read back."""

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return Problem(
        query=empty(1, KV_HEADS * GROUPS, queries, head_dim),
        key=empty(1, KV_HEADS, KEYS, head_dim),
        value=empty(1, KV_HEADS, KEYS, head_dim),
        inverse_frequencies=empty(int(head_dim * rotary_fraction) // 2, dtype=torch.float32),
        factor=1.0,
        query_positions=None if by_index else empty(1, queries, dtype=torch.int64),
        key_positions=None if by_index else empty(1, KEYS, dtype=torch.int64),
        query_factor=None,
        sinks=None,
        key_lengths=empty(1, dtype=torch.int64) if key_lengths else None,
        attention_mask=empty(1, 1, queries, KEYS) if mask else None,
        branches=rule.branches,
        edges=rule.edges,
        unit=rule.unit,
        layout=layout,
        causal=True,
        scale=head_dim**-0.5,
        sliding_window=sliding_window,
        softcap=softcap,
        deterministic=True,
        cu_seqlens_query=None,
        cu_seqlens_key=None,
    )


def compiled(compile_launches: Callable[..., list[Any]], cache: Problem, arch: int) -> Any:
    """The kernel that reads the cache; all launches are checked."""
    launches = compile_launches(module.decode, cache, arch=arch)
    for launch in launches:
        launch.check()
    return next(launch for launch in launches if launch.name == "decode_kernel")


@pytest.mark.parametrize(("variant", "itemsize", "width"), CASES)
def test_fits_and_spills_nothing(
    compile_launches: Callable[..., list[Any]], arch: int, variant: str, itemsize: int, width: int
) -> None:
    dtype = torch.bfloat16 if itemsize == 2 else torch.float32
    kernel = compiled(compile_launches, problem(dtype, width, **VARIANTS[variant]), arch)
    # What a multiprocessor is said to hold.
    residents = module.CONFIGURATIONS[f"sm_{arch}"][itemsize, width].residents
    if variant in ("plain", "rerope"):
        warps = module.CONFIGURATIONS[f"sm_{arch}"][itemsize, width].warps
        assert residents * kernel.registers * 32 * warps <= 65_536
        assert residents * (kernel.shared + 1024) <= {80: 164, 90: 228}[arch] * 1024


@pytest.mark.parametrize("shape", module.CONFIGURATIONS["small"], ids="{0[0]}-bytes-{0[1]}".format)
@pytest.mark.parametrize("variant", ["rerope", "grouped"])
def test_fits_small_chips(
    compile_launches: Callable[..., list[Any]], shape: tuple[int, int], variant: str
) -> None:
    dtype = torch.bfloat16 if shape[0] == 2 else torch.float32
    compiled(compile_launches, problem(dtype, shape[1], **VARIANTS[variant]), 89)


@pytest.mark.parametrize("head_dim", [72, 80, 128])
def test_sixteen_bytes_at_once(
    compile_launches: Callable[..., list[Any]], arch: int, head_dim: int
) -> None:
    """Also where a head is no multiple of 16 elements, which launches look for by themselves."""
    cache = problem(torch.bfloat16, head_dim, rule=ReRoPE(4096))
    assert "cp.async.cg.shared.global" in compiled(compile_launches, cache, arch).asm["ptx"]
