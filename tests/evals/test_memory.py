"""Batches fit the memory that is free, and an allocation that fails is recognised."""

from types import SimpleNamespace

import pytest
import torch

from ropewalk.evals import memory


def config(**changes):
    text = SimpleNamespace(
        hidden_size=256, num_attention_heads=4, intermediate_size=704, vocab_size=264, **changes
    )
    return SimpleNamespace(get_text_config=lambda: text)


def size(length, scored=16, device="cpu"):
    return memory.batch_size(
        config(), length=length, scored=scored, dtype=torch.float32, device=torch.device(device)
    )


def test_batches_shrink_with_length_and_never_vanish(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**40)
    sizes = [size(length) for length in (128, 512, 4096, 10**6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3] == 1


def test_batches_shrink_with_free_memory(monkeypatch):
    each = memory.bytes_per_sequence(config(), length=128, scored=16, itemsize=4)
    for free, expected in ((0, 1), (each, 1), (8 * each, 4), (2**50, 32)):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        assert size(128) == expected


def test_the_estimate_counts_logits_of_scored_tokens_only():
    few, many = (
        memory.bytes_per_sequence(config(), length=512, scored=scored, itemsize=2)
        for scored in (1, 512)
    )
    assert many - few == 511 * 264 * 8


def test_a_size_for_each_layer_counts_as_the_largest():
    sizes = {"length": 128, "scored": 16, "itemsize": 4}
    uneven = config()
    uneven.get_text_config().intermediate_size = [88, 704]
    uneven.get_text_config().num_attention_heads = [4, 2]
    assert memory.bytes_per_sequence(uneven, **sizes) == memory.bytes_per_sequence(
        config(), **sizes
    )


def test_free_memory_is_what_the_machine_has():
    assert 2**20 < memory.free_memory(torch.device("cpu")) < 2**50
    assert memory.usable_threads() >= 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 5 bytes"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_failed_allocations_are_recognised(error, expected):
    assert memory.is_out_of_memory(error) is expected
