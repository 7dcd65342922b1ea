"""Work counted by hand, and rates that follow from it."""

import pytest
import torch

from benchmarks.case import Work
from benchmarks.roofline import (
    Ceilings,
    attention_work,
    ceilings,
    floor_ms,
    rates,
    rotary_work,
    visible_pairs,
)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (4, 4), (1, 9), (3, 7), (16, 16)])
def test_visible_pairs_are_those_of_the_causal_mask(queries, keys):
    query = torch.arange(keys - queries, keys)[:, None]
    assert visible_pairs(queries, keys) == int((query >= torch.arange(keys)).sum())


def test_attention_counted_by_hand():
    # One head of length 2 on 3 tokens: 1 + 2 + 3 pairs, for each a product of q·k and one of p·v.
    sizes = {"batch": 1, "heads": 1, "kv_heads": 1, "queries": 3, "keys": 3, "head_dim": 2}
    work = attention_work(**sizes, itemsize=4, backward=False)
    assert work == Work(6 * 2 * 2 * 2, 4 * (3 * 2) * 4)
    # Backward: five products for two. It reads q, k, v, o, do and writes dq, dk, dv, of 24 bytes
    # each; three logsumexps of 4 bytes are written by the forward and read by the backward.
    training = attention_work(**sizes, itemsize=4, backward=True)
    assert training == Work(48 + 120, 4 * 24 + 8 * 24 + 2 * 12)


def test_grouped_heads_share_the_bytes_of_keys_but_not_the_products():
    sizes = {"batch": 2, "queries": 1, "keys": 10, "head_dim": 8, "itemsize": 2, "backward": False}
    grouped = attention_work(heads=4, kv_heads=1, **sizes)
    full = attention_work(heads=4, kv_heads=4, **sizes)
    assert grouped.flop == full.flop == 4 * 8 * 2 * 4 * 10
    assert full.bytes - grouped.bytes == 2 * (3 * 2 * 10 * 8 * 2)


def test_rotation_counted_by_hand():
    sizes = {"elements": 100, "table_elements": 20, "itemsize": 2}
    assert rotary_work(**sizes, backward=False) == Work(300, 2 * 100 * 2 + 20 * 4)
    assert rotary_work(**sizes, backward=True) == Work(600, 2 * (2 * 100 * 2 + 20 * 4))
    normed = rotary_work(**sizes, backward=True, norm=True)
    assert normed.bytes == rotary_work(**sizes, backward=True).bytes + 100 * 2


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
    measured = Ceilings(copy_gb_s=100.0, matmul_tflop_s=2.0, dtype="float32")
    assert floor_ms(Work(flop=4e12, bytes=1e9), measured) == pytest.approx(2000)
    assert floor_ms(Work(flop=1e9, bytes=1e9), measured) == pytest.approx(10)
    found = rates(Work(flop=4e12, bytes=1e9), 4000, measured)
    assert found == pytest.approx(
        {"tflop_s": 1.0, "gb_s": 0.25, "of_floor": 0.5, "of_copy": 0.0025}
    )


def test_ceilings_are_measured():
    found = ceilings("cpu", torch.float32, quick=True)
    assert found.copy_gb_s > 0
    assert found.matmul_tflop_s > 0
    assert found.dtype == "float32"
