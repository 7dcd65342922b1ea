"""Recurrences' peers compute what they say, a wrong one shows, sizes and goals are as said."""

import inspect
from types import SimpleNamespace

import pytest
import torch

from benchmarks.case import Unavailable, Work
from benchmarks.peers import recurrent as peers
from benchmarks.recurrent import RecurrentShape, RecurrentWorkload, exact, gate_inputs, step
from benchmarks.roofline import recurrence_work
from benchmarks.suites import make_suite
from ropewalk.kernels.linear_scan import linear_scan

CELLS = ("tanh", "gru", "lstm")
PASSES = pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])


def workload(kind, dtype=torch.float32, **options) -> RecurrentWorkload:
    return RecurrentWorkload(RecurrentShape(kind, 2, 37, 11, dtype, "cpu", **options))


@PASSES
@pytest.mark.parametrize("projected", [False, True], ids=["scan", "layer"])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_peers_agree_with_the_steps(kind, projected, backward):
    problem = workload(kind, projected=projected, backward=backward)
    for peer in (
        *("auto", "numba", "numba-newton", "reference"),
        *("reference-sequential", "loop"),
    ):
        problem.build(peer)()
        assert problem.check(peer).error < 2e-6, peer


@PASSES
def test_linear_peers_agree_with_the_steps(backward):
    problem = workload("linear", backward=backward)
    for peer in ("auto", "numba", "reference", "loop"):
        problem.build(peer)()
        assert problem.check(peer).error < 1e-6, peer
    if not backward:
        for peer in ("associative-scan", "copy"):
            problem.build(peer)()
            assert problem.check(peer).error < 1e-6, peer


@PASSES
def test_torchs_gru_is_compared_with_itself(backward):
    problem = workload("gru", projected=True, backward=backward)
    problem.build("nn.GRU")()
    assert problem.check("nn.GRU").error < 1e-6


@pytest.mark.parametrize("kind", ["gru", "linear"])
def test_half_precision_passes_with_room(kind):
    problem = workload(kind, torch.bfloat16, backward=True)
    for peer in ("auto", "reference"):
        problem.build(peer)()
        check = problem.check(peer)
        assert check.error < 0.8 * check.tolerance, peer


@pytest.mark.parametrize("projected", [False, True], ids=["scan", "layer"])
@pytest.mark.parametrize("kind", CELLS)
def test_the_oracles_gradients_are_autograds(kind, projected):
    problem = workload(kind, projected=projected, backward=True)
    tensors = [t.detach().double().requires_grad_() for t in problem.tensors]
    upstream = problem.states_grad.double()
    inputs, state, states = (
        gate_inputs(problem.shape, tensors),
        torch.zeros_like(upstream[:, 0]),
        [],
    )
    for t in range(problem.shape.time):
        state = step(kind, inputs[:, t], state, tensors[-1])
        states.append(state)
    unrolled = torch.stack(states, dim=1)
    wanted = [unrolled, *torch.autograd.grad(unrolled, tensors, upstream)]
    for found, expected in zip(exact(problem.shape, tensors, upstream), wanted, strict=True):
        torch.testing.assert_close(found, expected)


def test_the_linear_oracles_gradients_are_autograds():
    problem = workload("linear", backward=True)
    tensors = [t.detach().double().requires_grad_() for t in problem.tensors]
    layer = peers.build("loop", problem)
    # A loop of the problem's sizes, in float64.
    x, states = torch.zeros(2, 11).double(), []
    for t in range(37):
        x = tensors[0][:, t] * x + tensors[1][:, t]
        states.append(x)
    unrolled = torch.stack(states, dim=1)
    wanted = [
        unrolled, *torch.autograd.grad(unrolled, tensors, problem.states_grad.double())
    ]  # fmt: skip
    for found, expected in zip(layer.expected(), wanted, strict=True):
        torch.testing.assert_close(found, problem.compared(expected))


@pytest.mark.parametrize("kind", ["gru", "linear"])
def test_a_wrong_result_is_found_out(kind):
    problem = workload(kind, backward=True)
    right = peers.build("auto", problem)
    wrong = {
        "another scale": lambda *given: 1.01 * right.function(*given),
        "a step late": lambda *given: right.function(*given).roll(1, dims=1),
        "no gradient": lambda *given: right.function(given[0].detach() + 0 * given[0], *given[1:]),
        "not a number": lambda *given: right.function(*given) * float("nan"),
    }
    for what, function in wrong.items():
        problem._layers["auto"] = right._replace(function=function)
        assert not problem.check("auto").passes, what


def test_the_compiled_loop_carries_its_state(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(peers, "COMPILED_STEPS", 8)
    for kind in CELLS:
        problem = RecurrentWorkload(RecurrentShape(kind, 2, 24, 3, torch.float32, "cpu"))
        problem.build("loop-compiled")()
        assert problem.check("loop-compiled").error < 1e-6


@PASSES
def test_other_peoples_layouts(monkeypatch, backward):
    """Their scans in torch, called as theirs are: time last, or a logarithm."""
    modules = {
        "accelerated-scan": SimpleNamespace(scan=lambda a, b: linear_scan(a.mT, b.mT).mT),
        "flash-linear-attention": SimpleNamespace(
            chunk_hgrn=lambda x, g: (linear_scan(g.exp(), x), None)
        ),
    }
    monkeypatch.setattr(peers, "_imported", lambda distribution, *_: modules[distribution])
    problem = workload("linear", backward=backward)
    for peer in ("accelerated-scan", "accelerated-scan-warp", "hgrn"):
        problem.build(peer)()
        assert problem.check(peer).error < 2e-6, peer


@pytest.mark.parametrize(
    ("kind", "peer", "backward", "reason"),
    [
        ("gru", "triton-newton", True, "backend 'triton' cannot run"),
        ("linear", "triton", False, "expected tensors on a CUDA device"),
        ("linear", "associative-scan", True, "silently zero"),
        ("linear", "copy", True, "forward only"),
        ("linear", "hgrn", False, "flash-linear-attention needs a GPU"),
        ("gru", "accelerated-scan", False, "linear recurrences only"),
        ("lstm", "nn.GRU", False, "no other cell"),
        ("gru", "loop-compiled", True, "the forward of a cell only"),
        ("gru", "loop-compiled", False, "no multiple of 32"),
    ],
)
def test_a_peer_that_cannot_take_part_says_why(monkeypatch, kind, peer, backward, reason):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Unavailable, match=reason):
        workload(kind, backward=backward).build(peer)


def test_work_counted_by_hand():
    linear = {"steps": 5, "channels": 3, "per_step": 2, "again": 1, "per_state": 1, "weights": 0}
    options = {"itemsize": 4, "projected": False}
    # a and b are read, x is written; then a, x and v are read, and both gradients written.
    assert recurrence_work(**linear, **options, backward=False) == Work(0, 4 * 3 * 15)
    assert recurrence_work(**linear, **options, backward=True) == Work(0, 4 * 8 * 15)
    layer = {"steps": 5, "channels": 3, "per_step": 3, "again": 3, "per_state": 1, "weights": 12}
    numbers = 5 * 3 + 12 + 3 * 3 * 3 + 3 * 3 + 5 * 3
    options = {"itemsize": 2, "projected": True}
    assert recurrence_work(**layer, **options, backward=False) == Work(2 * 5 * 3 * 9, 2 * numbers)


def results_of(suite, times):
    figures = {
        peer: {"median_ms": ms, "of_copy": 0.6, "of_floor": 0.6} for peer, ms in times.items()
    }
    return {case.name: {"peers": dict(figures)} for case in suite.cases}


def test_goals_on_a_cpu_are_the_worst_layer():
    suite = make_suite("recurrent", "cpu")
    results = results_of(suite, {"auto": 1.0, "nn.GRU": 3.0, "reference": 4.0})
    results["gru-layer/training/8x16384x64/float32"]["peers"]["nn.GRU"] = {"median_ms": 2.0}
    goals = suite.goals(results)
    assert [(goal["value"], goal["status"]) for goal in goals] == [
        (3.0, "pass"), (2.0, "pass"), (0.75, "miss"), (0.5, "miss"),
    ]  # fmt: skip


def test_goals_on_a_gpu():
    suite = make_suite("recurrent", "cuda")
    results = results_of(suite, {"auto": 1.0, "nn.GRU": 0.5, "loop-compiled": 400.0})
    found = [(goal["name"].partition(": ")[2], goal["value"]) for goal in suite.goals(results)]
    assert sorted(found) == [
        ("share of the copy bandwidth", 0.6),
        ("share of the copy bandwidth", 0.6),
        ("speed of auto over nn.GRU everywhere", 0.5),
        ("speed of auto over nn.GRU everywhere", 0.5),
        ("speed over the compiled loop", 400.0),
        ("time over the bytes' floor", 1.667),
        ("time over the bytes' floor", 1.667),
    ]


def test_what_goals_name_is_there():
    """A goal over a peer that its cases lack could never be judged."""
    for device, named in (("cpu", {"auto", "reference", "nn.GRU"}), ("cuda", {"auto", "nn.GRU"})):
        for case in make_suite("recurrent", device).cases:
            if case.name.startswith("gru-layer"):
                assert named <= set(case.peers)
    [loop] = [c for c in make_suite("recurrent", "cuda").cases if "loop-compiled" in c.peers]
    assert loop.name == "gru/forward/1x16384x64/float32"


def test_names_are_of_one_case_each():
    for device in ("cpu", "cuda"):
        for quick in (False, True):
            names = [case.name for case in make_suite("recurrent", device, quick=quick).cases]
            assert len(names) == len(set(names)) > 10


def test_every_peer_has_a_line_in_its_module():
    told = inspect.getdoc(peers) or ""
    for device in ("cpu", "cuda"):
        for case in make_suite("recurrent", device).cases:
            assert all(name in told for name in case.peers)
