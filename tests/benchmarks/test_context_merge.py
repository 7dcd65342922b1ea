"""The merge's peers compute its definition, a wrong one shows, inputs are as said."""

import inspect
import math

import pytest
import torch

from benchmarks.case import Unavailable, Work
from benchmarks.context_merge import BETA, ETA, TOP_P, MergeShape, MergeWorkload, defined
from benchmarks.peers import context_merge as peers
from benchmarks.roofline import context_merge_work
from benchmarks.suites import make_suite
from ropewalk.kernels.context_merge import context_merge


def workload(dtype=torch.float32, **options) -> MergeWorkload:
    return MergeWorkload(MergeShape(2, 3, 700, dtype, "cpu", **options))


@pytest.mark.parametrize("distribution", ["trained", "initial"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("peer", ["auto", "reference", "sorted"])
def test_peers_agree_with_the_oracle(peer, dtype, distribution):
    problem = workload(dtype, distribution=distribution)
    problem.build(peer)()
    assert problem.check(peer).error < 1e-5


def test_the_oracle_is_the_equation():
    """On a row that can be cut by hand: 0.6, then two equals of 0.175 of which one would do."""
    sure = torch.tensor([0.6, 0.175, 0.175, 0.05]).log()
    flat = torch.full((4,), 0.25).log()
    output = torch.stack((flat, flat, sure))[None]
    found = defined(output, torch.tensor([0]))
    kept = sure[:3].double()
    entropy = -(kept.exp() * kept).sum()
    assert TOP_P == 0.95
    assert found.chosen.item() == 1
    torch.testing.assert_close(found.entropies, torch.tensor([[math.log(4), entropy]]).double())
    merged = ((1 + BETA) * kept - BETA * math.log(0.25)).log_softmax(-1)
    torch.testing.assert_close(found.log_probs[0, :3], merged)
    assert found.log_probs[0, 3] == -math.inf


def test_equals_stay_together_in_the_sorted_form():
    rows = torch.tensor([[[2.0, 1, 1, 1, 1], [2.0, 1, 1, 1, 1]]])
    found = peers.sorted_form(rows, torch.tensor([0]))
    expected = context_merge(rows[:, 1:], rows[:, 0], beta=BETA, eta=ETA, top_p=TOP_P)
    torch.testing.assert_close(found.log_probs, expected.log_probs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_result_is_found_out(dtype):
    problem = workload(dtype)
    right = peers.build("auto", problem)

    def off(change):
        def merge(output, previous):
            return change(right(output, previous))

        return merge

    def with_options(**options):
        def merge(output, previous):
            options_of_all = {"previous": previous, "beta": BETA, "top_p": TOP_P} | options
            found = context_merge(output[:, 1:], output[:, 0], **options_of_all)
            return peers.Outcome(*found)

        return merge

    wrong = {
        "another choice": off(lambda x: x._replace(chosen=(x.chosen + 1) % 3)),
        "another entropy": off(lambda x: x._replace(entropies=x.entropies * 1.01)),
        "not a number": off(lambda x: x._replace(log_probs=x.log_probs * float("nan"))),
        "nothing taken off": with_options(beta=0.0),
        "nothing cut": with_options(top_p=1.0),
        "another entropy form": with_options(renormalise_entropy=True),
    }
    for what, merge in wrong.items():
        problem._merges["auto"] = merge
        assert not problem.check("auto").passes, what


def test_a_copy_is_timed_and_merges_nothing():
    problem = workload()
    copied = problem.build(peers.COPY)()
    assert torch.equal(copied, problem.output)
    assert copied.data_ptr() != problem.output.data_ptr()
    assert problem.check(peers.COPY).passes


def test_a_peer_that_cannot_take_part_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Unavailable, match="backend 'triton' cannot run"):
        workload().build("triton")


def test_inputs_are_as_sharp_as_said():
    entropies = {
        kind: defined(problem.output, problem.previous).entropies
        for kind in ("trained", "initial")
        for problem in [MergeWorkload(MergeShape(1, 8, 20000, torch.float32, "cpu", kind))]
    }
    assert entropies["trained"].mean() < 4
    assert entropies["initial"].min() > 8


def test_work_counted_by_hand():
    sizes = {"questions": 3, "contexts": 4, "vocabulary": 10, "itemsize": 2}
    assert context_merge_work(**sizes) == Work(0.0, 3 * (5 * 10 * 2 + 10 * 4 + 4 * 4 + 8))
    assert MergeShape(3, 4, 10, torch.bfloat16, "cpu").logit_bytes == 3 * 5 * 10 * 2


def test_goals_are_judged_by_the_main_sizes():
    names = {case.name for case in make_suite("context_merge", "cuda").cases}
    assert {"trained/1x32x128256/bfloat16", "trained/8x32x128256/bfloat16"} <= names
    # A copy in 2 ms moves each byte twice; reading them once in 1.5 ms is 2/3 of its bandwidth.
    figures = {"triton": {"median_ms": 1.5, "of_copy": 0.85}, "copy": {"median_ms": 2.0}}
    results = {name: {"peers": figures} for name in names}
    goals = make_suite("context_merge", "cuda").goals(results)
    assert [goal["value"] for goal in goals] == [0.85, 0.6667] * 2
    assert [goal["status"] for goal in goals] == ["pass", "miss"] * 2
    figures = {"auto": {"median_ms": 1.0}, "sorted": {"median_ms": 3.5}}
    results = {case.name: {"peers": figures} for case in make_suite("context_merge", "cpu").cases}
    assert all(goal["value"] == 3.5 for goal in make_suite("context_merge", "cpu").goals(results))


def test_every_peer_has_a_line_in_its_module():
    told = inspect.getdoc(peers) or ""
    for device in ("cpu", "cuda"):
        for case in make_suite("context_merge", device).cases:
            assert all(name in told for name in case.peers)
