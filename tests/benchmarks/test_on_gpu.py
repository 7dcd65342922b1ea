"""What is asked of a GPU, in which order; the device is pretended, so that it is proven without."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import environment, memory, timing

LOG: list[str] = []


class PretendedEvent:
    """An event four milliseconds before any other."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        LOG.append("event")

    def elapsed_time(self, other: "PretendedEvent") -> float:
        return 4.0


@pytest.fixture
def pretended_gpu(monkeypatch):
    LOG.clear()
    empty = torch.empty
    cuda = torch.cuda
    monkeypatch.setattr(timing, "CACHE_BYTES", 16)
    monkeypatch.setattr(torch, "empty", lambda *size, device, **kind: empty(*size, **kind))
    monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: LOG.append("flush"))
    monkeypatch.setattr(cuda, "_sleep", lambda cycles: LOG.append("sleep"))
    monkeypatch.setattr(cuda, "Event", PretendedEvent)
    monkeypatch.setattr(cuda, "synchronize", lambda: LOG.append("wait"))
    monkeypatch.setattr(cuda, "memory_allocated", lambda: 3 * 2**20)
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda: LOG.append("reset"))
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda: 10 * 2**20)
    monkeypatch.setattr(cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132,
        total_memory=140 * 2**30, L2_cache_size=60 * 2**20,
    )  # fmt: skip
    monkeypatch.setattr(cuda, "get_device_properties", lambda index: properties)


def test_a_run_lies_between_two_events_after_the_cache_was_written_over(pretended_gpu):
    timings = timing.interleaved({"call": lambda: LOG.append("call")}, "cuda", seconds=0, least=2)
    assert LOG == ["flush", "sleep", "event", "call", "event", "wait"] * 3
    assert timings["call"].median_ms == pytest.approx(4.0)
    assert timings["call"].runs == 2


def test_the_peak_is_that_of_one_call_above_what_is_held(pretended_gpu):
    assert memory.peak_on_gpu(lambda: LOG.append("call")) == 7
    assert LOG == ["wait", "reset", "call", "wait"]


def test_the_gpu_is_described(pretended_gpu):
    device = environment.environment("cuda")["device"]
    assert device["name"] == environment.device_name("cuda") == "NVIDIA H200"
    assert device["capability"] == "9.0"
    assert device["memory_gib"] == 140
    assert device["cache_mib"] == 60
