"""The kernels visit every visible pair, skip hidden tiles and mask no tile that is full."""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from ropewalk.kernels.rotary_attention.triton.angles import sine_cosine
from ropewalk.kernels.rotary_attention.triton.ranges import (
    NO_EDGE,
    keys_of_queries,
    queries_of_keys,
)

BLOCK = 4


@triton.jit
def ranges_kernel(
    out, first, last, length, offset, lower, upper, window, unit, positions, blocks, ordered,
    steps, KEYS: tl.constexpr, EDGES: tl.constexpr, CAUSAL: tl.constexpr, SLIDING: tl.constexpr,
    BY_INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first_block = tl.maximum(first, 0) // unit
    last_block = tl.maximum(last, 0) // unit
    if KEYS:
        start, full_start, full_stop, stop = keys_of_queries(
            first, last, first_block, last_block, length, lower, upper, window, unit,
            positions, blocks, ordered, steps, EDGES, EDGES, CAUSAL, SLIDING, BY_INDEX, BLOCK,
        )  # fmt: skip
    else:
        start, full_start, full_stop, stop = queries_of_keys(
            first, last, first_block, last_block, length, offset, lower, upper, window, unit,
            positions, blocks, ordered, steps, EDGES, EDGES, CAUSAL, SLIDING, BY_INDEX, BLOCK,
        )  # fmt: skip
    tl.store(out, start)
    tl.store(out + 1, full_start)
    tl.store(out + 2, full_stop)
    tl.store(out + 3, stop)


def visible(query: np.ndarray, key: np.ndarray, case: dict[str, Any]) -> np.ndarray:
    """The definition, pair by pair: queries (m, 1), keys (1, n)."""
    distance = query - key
    shown = np.ones(distance.shape, bool)
    if case["causal"]:
        shown &= distance >= 0
    if case["window"] is not None:
        shown &= abs(distance) < case["window"]
    blocks = query // case["unit"] - key // case["unit"]
    lower, upper = case["edges"]
    return shown & (blocks >= lower) & (blocks < upper)


def random_case(random: np.random.Generator) -> dict[str, Any]:
    causal = bool(random.integers(2)) or None
    edges = [(-NO_EDGE.value, NO_EDGE.value), (-NO_EDGE.value, 3), (3, NO_EDGE.value), (1, 2)]
    many = bool(random.integers(3))
    return {
        "causal": bool(causal) or many,
        "window": int(random.integers(1, 12)) if random.integers(2) else None,
        "unit": int(random.integers(1, 6)) if many else 1,
        "edges": edges[random.integers(4)] if many else edges[0],
        "queries": int(random.integers(1, 30)),
        "keys": int(random.integers(1, 30)),
        "by_index": bool(random.integers(2)),
    }


@pytest.mark.parametrize("of_keys", [False, True], ids=["keys-of-queries", "queries-of-keys"])
@pytest.mark.parametrize("seed", range(60))
def test_tiles_against_the_definition(
    of_keys: bool, seed: int, kernel_device: torch.device
) -> None:
    random = np.random.default_rng(seed)
    case = random_case(random)
    keys = np.arange(case["keys"])
    queries = np.arange(case["queries"]) + case["keys"] - case["queries"]
    if not case["by_index"]:
        keys = np.sort(random.integers(0, 30, case["keys"]))
        queries = np.sort(random.integers(0, 30, case["queries"]))
    ours, theirs = (keys, queries) if of_keys else (queries, keys)
    begin = int(random.integers(len(ours)))
    block = ours[begin : begin + BLOCK]
    tensor = torch.tensor(theirs, dtype=torch.int32, device=kernel_device)
    ordered = torch.ones(1, dtype=torch.int32, device=kernel_device)
    arrays = [tensor, tensor.clamp(min=0) // case["unit"], ordered]
    out = torch.zeros(4, dtype=torch.int32, device=kernel_device)
    ranges_kernel[(1,)](
        out, int(block.min()), int(block.max()), len(theirs), case["keys"] - case["queries"],
        *case["edges"], case["window"] or 2**29, case["unit"],
        *([None, None, None] if case["by_index"] else arrays), 7,
        KEYS=not of_keys, EDGES=case["edges"] != (-NO_EDGE.value, NO_EDGE.value),
        CAUSAL=case["causal"], SLIDING=case["window"] is not None, BY_INDEX=case["by_index"],
        BLOCK=BLOCK,
    )  # fmt: skip
    start, full_start, full_stop, stop = out.tolist()
    if of_keys:
        shown = visible(theirs[:, None], block[None, :], case)
    else:
        shown = visible(block[None, :], theirs[:, None], case)
    for tile in range(0, len(theirs) + BLOCK, BLOCK):
        part = shown[tile : tile + BLOCK]
        visited = start <= tile < stop
        full = full_start <= tile < full_stop
        assert visited or not part.any(), (case, tile, out)
        assert not full or (part.all() and len(part) == BLOCK), (case, tile, out)
        if case["by_index"]:
            # Exact in both directions: nothing hidden is visited but at ragged tile ends, and
            # what could go without a mask does.
            whole = len(part) == BLOCK and part.all()
            assert full or not whole or queries.min() < 0, (case, tile, out)
    if case["by_index"] and shown.any():
        rows = np.flatnonzero(shown.any(1))
        assert start == rows[0] // BLOCK * BLOCK or queries.min() < 0
        assert stop == rows[-1] // BLOCK * BLOCK + BLOCK or queries.min() < 0


@triton.jit
def angles_kernel(angles, sines, cosines, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    sine, cosine = sine_cosine(tl.load(angles + index))
    tl.store(sines + index, sine)
    tl.store(cosines + index, cosine)


@pytest.mark.parametrize("scale", [1.0, 100.0, 1e5])
def test_sine_and_cosine(scale: float, kernel_device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    angles = (torch.rand(4096, generator=generator) * 2 - 1) * scale
    angles[:4] = torch.tensor([0.0, torch.pi / 2, -torch.pi / 4, torch.pi])
    there = angles.to(kernel_device)
    sines, cosines = torch.empty_like(there), torch.empty_like(there)
    angles_kernel[(1,)](there, sines, cosines, COUNT=4096)
    # Without fused multiply-add, as in the interpreter, the reduction of large angles rounds.
    tolerance = 2e-7 if scale <= 100 or kernel_device.type == "cuda" else 5e-6
    torch.testing.assert_close(sines.cpu().double(), angles.double().sin(), rtol=0, atol=tolerance)
    torch.testing.assert_close(
        cosines.cpu().double(), angles.double().cos(), rtol=0, atol=tolerance
    )
