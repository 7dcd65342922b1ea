"""Calls recorded in a CUDA graph: recorded once, replayed, or left out with the reason."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measure
from benchmarks.attention import AttentionWorkload, Shape
from benchmarks.case import Case, Unavailable, Work
from benchmarks.peers import graph as module
from benchmarks.peers import rule_of
from benchmarks.peers.graph import SUFFIX, Recording, captured, in_graph
from benchmarks.roofline import Ceilings
from benchmarks.suites import make_suite
from ropewalk.blocks.rotary import Plain, ReRoPE

SHAPE = Shape(1, 4, 2, 1, 70, 16, torch.float32, "cpu", ReRoPE(16))


def record_here(call):
    """In the place of a graph: the result has a home of its own, which a replay fills."""
    home = torch.empty_like(call())
    return Recording(lambda: home.copy_(call()), home)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(module, "in_graph", record_here)


def test_recorded_once_and_replayed_on_what_the_inputs_then_hold():
    recordings = []

    def record(call):
        recordings.append(call)
        return record_here(call)

    replay = captured(lambda x: 2 * x, record)
    x = torch.ones(3)
    assert torch.equal(replay(x), 2 * torch.ones(3))
    x += 1
    assert torch.equal(replay(x), 4 * torch.ones(3))
    assert len(recordings) == 1
    assert torch.equal(replay(torch.zeros(3)), torch.zeros(3))
    assert len(recordings) == 2


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("peer", ["auto:captured", "sdpa:plain:captured", "copy", "copy:captured"])
def test_the_replayed_result_is_checked_as_any_peer(peer):
    problem = AttentionWorkload(SHAPE)
    problem.build(peer)()
    assert problem.check(peer).error < 1e-5


@pytest.mark.usefixtures("recorded")
def test_a_replay_that_computes_nothing_is_found_out(monkeypatch):
    monkeypatch.setattr(module, "in_graph", lambda call: Recording(int, torch.zeros_like(call())))
    problem = AttentionWorkload(SHAPE)
    problem.build("auto:captured")()
    assert problem.check("auto:captured").error > 0.5


def test_a_rule_is_read_before_the_suffix():
    assert rule_of("triton:captured", ReRoPE(16)) == ReRoPE(16)
    assert rule_of("triton:plain:captured", ReRoPE(16)) == Plain()


@pytest.fixture
def pretended_gpu(monkeypatch):
    log = []
    stream = SimpleNamespace(wait_stream=lambda other: log.append("wait"))
    graph = SimpleNamespace(replay=lambda: log.append("replay"))

    @contextlib.contextmanager
    def recording(its):
        assert its is graph
        log.append("begin")
        yield
        log.append("end")

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Stream", lambda: stream)
    monkeypatch.setattr(cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(cuda, "graph", recording)
    return log


def test_a_call_is_warmed_up_on_a_stream_of_its_own_and_then_recorded(pretended_gpu):
    def call():
        pretended_gpu.append("call")
        return torch.ones(1)

    recording = in_graph(call)
    recording.replay()
    warm_up = ["wait", *["call"] * module.WARM_UPS, "wait"]
    assert pretended_gpu == [*warm_up, "begin", "call", "end", "replay"]


def test_what_a_graph_cannot_hold_is_left_out_with_the_reason(pretended_gpu):
    def call():
        if "begin" in pretended_gpu:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return torch.ones(1)

    with pytest.raises(Unavailable, match=r"^not captured: operation not permitted .* capturing$"):
        in_graph(call)


def test_running_out_of_memory_is_no_reason_of_the_graph(pretended_gpu):
    def call():
        if "begin" in pretended_gpu:
            raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        in_graph(call)


def test_the_reason_stands_in_the_result_and_the_others_go_on(monkeypatch):
    def refuse(call):
        raise Unavailable("not captured: why")

    monkeypatch.setattr(module, "in_graph", refuse)
    case = Case(
        "one", {}, Work(1.0, 1.0), ("auto", f"auto{SUFFIX}"), lambda: AttentionWorkload(SHAPE)
    )
    result = measure.measure(
        case, "rotary_attention", "cpu", Ceilings(1.0, 1.0, "float32"), seconds=0.0, quick=True
    )
    assert result["peers"][f"auto{SUFFIX}"] == {"skipped": "not captured: why"}
    assert result["peers"]["auto"]["median_ms"] > 0


def test_decoding_on_a_gpu_is_measured_both_ways():
    for case in make_suite("rotary_attention", "cuda").cases:
        assert ("/decode/" in case.name) == ("triton:captured" in case.peers), case.name
        assert ("copy" in case.peers) == ("copy:captured" in case.peers)
    elsewhere = make_suite("rotary_attention", "cpu").cases
    assert not any(peer.endswith(SUFFIX) for case in elsewhere for peer in case.peers)
