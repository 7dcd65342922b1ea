"""`decode`: the answer to a few queries against a long cache; `suits` says which problems are such.

How many programs share a row's keys depends on the sizes of the tensors only, never on values that
lie on the device: the kernels find out there how long a row is, and shares without keys are cheap.

Three kernels are launched and nothing else, where positions are the default ones: one rotates the
queries and places the keys (prepare.py), one reads the cache, one merges the shares. Each further
launch would show in the time.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.chips import chip
from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.rotary_attention.problem import Problem
from ropewalk.kernels.rotary_attention.triton.configurations import (
    Chip,
)
from ropewalk.kernels.rotary_attention.triton.decode_kernels import decode_kernel, merge_kernel
from ropewalk.kernels.rotary_attention.triton.geometry import contiguous_rows, geometry
from ropewalk.kernels.rotary_attention.triton.prepare import prepare
from ropewalk.kernels.sizes import ceil_divide, power_of_two

MOST_QUERIES = 16
"""Beyond, reading the cache is no longer what takes the time."""

LEAST_TILES = 4
"""Tiles worth a program of their own."""

MERGED_TOGETHER = 16
"""Splits that the second kernel reads at once."""


class Configuration(NamedTuple):
    """How the kernel runs.

    Attributes:
        rows: at most so many queries of a group's heads in one program; others read the keys again.
        columns: keys in a tile.
        warps: warps of a program.
        stages: loads in flight in a loop.
        residents: programs that a multiprocessor holds at a time, at least.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    residents: int


INTERPRETED = Configuration(64, 16, 4, 1, 1)

# By bytes of an element and the width of a head rounded up to a power of two. In flight are
# `stages` − 1 tiles of keys and of values in each resident: 60 to 130 KiB a multiprocessor, several
# times the latency of memory times its bandwidth. Proved by decode/test_compile.py.
CONFIGURATIONS: dict[Chip, dict[tuple[int, int], Configuration]] = {
    "sm_90": {
        (2, 64): Configuration(64, 64, 4, 4, 2),
        (2, 128): Configuration(64, 64, 4, 3, 2),
        (2, 256): Configuration(32, 32, 8, 3, 1),
        (4, 64): Configuration(32, 32, 4, 3, 2),
        (4, 128): Configuration(16, 32, 4, 3, 2),
    },
    "sm_80": {
        (2, 64): Configuration(64, 64, 4, 3, 2),
        (2, 128): Configuration(64, 64, 4, 3, 2),
        (2, 256): Configuration(32, 32, 8, 3, 1),
        (4, 64): Configuration(16, 64, 4, 2, 2),
        (4, 128): Configuration(16, 32, 4, 2, 2),
    },
    "small": {
        (2, 64): Configuration(64, 64, 4, 3, 1),
        (2, 128): Configuration(16, 64, 4, 2, 1),
        (2, 256): Configuration(16, 32, 8, 2, 1),
        (4, 64): Configuration(16, 64, 4, 2, 1),
        (4, 128): Configuration(16, 32, 4, 2, 1),
    },
}


def _shape(problem: Problem) -> tuple[int, int]:
    """What a configuration is looked up by."""
    p = problem
    widest = max(p.query.shape[-1], p.value.shape[-1])
    return p.query.element_size(), max(64, power_of_two(widest))


def configuration(problem: Problem) -> Configuration:
    """The shipped configuration for a problem on its device."""
    if interpreted():
        return INTERPRETED
    return CONFIGURATIONS[chip(problem.query.device)][_shape(problem)]


def suits(problem: Problem) -> bool:
    """Whether a problem is a few queries against at least as many keys, row by row of a batch.

    Wide heads in float32 are left to the ordinary kernel: their queries alone fill the registers.
    """
    p = problem
    queries, keys = p.query.shape[2], p.key.shape[2]
    few = 0 < queries <= min(MOST_QUERIES, keys) and p.cu_seqlens_query is None
    return few and _shape(p) in CONFIGURATIONS["sm_90"]


def count_splits(programs: int, tiles: int, slots: int) -> int:
    """How many programs share a row's keys.

    The fewest that keep at least 0.95 of the best share of the chip busy: programs run in waves of
    `slots`, and a last wave that is nearly empty costs as much as a full one.

    Args:
        programs: without any split.
        tiles: of keys in a row.
        slots: programs that run at a time.
    """
    most = max(1, min(tiles // LEAST_TILES, slots))
    busy = [n * programs / (ceil_divide(n * programs, slots) * slots) for n in range(1, most + 1)]
    enough = 0.95 * max(busy)
    return next(n for n, share in enumerate(busy, 1) if share >= enough)


def slots_of(device: torch.device, residents: int) -> int:
    """Programs that a device runs at a time; the interpreter runs one."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count * residents


def _heavy(problem: Problem) -> bool:
    """Whether there is so much to decide about a pair that registers do not hold many rows."""
    p = problem
    several = p.softcap is not None or p.attention_mask is not None or not p.by_index
    # Two branches that both turn keys hold two forms of wide queries.
    wide = _shape(p)[1] > 128 and len(p.edges) == 1 and min(p.key_copies) >= 0
    return several or wide or len(p.edges) > 1


def _unit(key: Tensor, value: Tensor) -> int:
    """Elements in 16 bytes if they divide all strides between keys and between values, else 1."""
    unit = 16 // key.element_size()
    strides = (*key.stride()[:3], *value.stride()[:3])
    return unit if all(stride % unit == 0 for stride in strides) else 1


def decode(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, query, value_dim) and float32 logsumexp (batch, heads, query)."""
    p, how = problem, configuration(problem)
    batch, heads, queries, head_dim = p.query.shape
    kv_heads, keys, value_dim = p.key.shape[1], p.key.shape[2], p.value.shape[-1]
    output = p.query.new_empty(batch, heads, queries, value_dim)
    logsumexp = p.query.new_empty((batch, heads, queries), dtype=torch.float32)
    if logsumexp.numel() == 0:
        return output, logsumexp

    group_rows = heads // kv_heads * queries
    rows = min(max(16, power_of_two(group_rows)), 16 if _heavy(p) else how.rows)
    # Three branches are three pairs of loops, whose bounds take registers of their own.
    columns = how.columns if len(p.edges) < 2 else max(16, how.columns // 2)
    row_blocks = ceil_divide(group_rows, rows)
    splits = count_splits(
        row_blocks * batch * kv_heads,
        ceil_divide(keys, columns),
        slots_of(p.query.device, how.residents),
    )
    partial = output.new_empty((splits, *output.shape), dtype=torch.float32)
    partial_lse = output.new_empty((splits, *logsumexp.shape), dtype=torch.float32)

    key = contiguous_rows(p.key)
    pairs = p.inverse_frequencies.shape[0]
    raw = sum(2**n for n, copy in enumerate(p.key_copies) if pairs == 0 or copy < 0)
    turned, angles = prepare(p, raw)
    shared = geometry(p, queries=turned, keys=(key,) * len(p.branches)).arguments
    told = {
        "key": key,
        "key_batch": key.stride(0),
        "key_head": key.stride(1),
        "key_row": key.stride(2),
        "partial": partial,
        "partial_lse": partial_lse,
        "key_angles": angles,
        "angle_branch": angles.stride(0),
        "angle_batch": 0 if angles.shape[1] == 1 else angles.stride(1),
        "inverse_frequencies": p.inverse_frequencies.to(torch.float32).contiguous(),
        "ordered": shared["keys_ordered"],
        "RAW": raw,
        "PAIRS": pairs,
        "PAIR_BLOCK": max(16, power_of_two(pairs)),
        "REST_BLOCK": max(16, power_of_two(head_dim - 2 * pairs)),
        "STRIDE_UNIT": _unit(key, shared["value"]),
        "INTERLEAVED": p.layout == "interleaved",
        "ROWS": rows,
        "COLUMNS": columns,
    }
    arguments = {name: (shared | told)[name] for name in decode_kernel.arg_names}
    grid = row_blocks, splits, batch * kv_heads
    # Type checkers cannot read a kernel's compile-time arguments.
    read_cache: Any = decode_kernel
    merge: Any = merge_kernel
    read_cache[grid](**arguments, num_warps=how.warps, num_stages=how.stages)
    merge[(logsumexp.numel(),)](
        partial, partial_lse, p.sinks, output, logsumexp, logsumexp.numel(), splits, heads, queries,
        VALUE_DIM=value_dim, VALUE_BLOCK=shared["VALUE_BLOCK"], SPLITS=MERGED_TOGETHER,
        SINKS=p.sinks is not None, num_warps=4,
    )  # fmt: skip
    return output, logsumexp
