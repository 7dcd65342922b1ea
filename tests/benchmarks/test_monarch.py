"""The Monarch product's peers compute their matrices, a wrong one shows, sizes are as said."""

import inspect

import pytest
import torch

from benchmarks.case import Unavailable, Work
from benchmarks.monarch import ProductShape, ProductWorkload
from benchmarks.peers import monarch as peers
from benchmarks.roofline import monarch_work
from benchmarks.suites import make_suite
from ropewalk.kernels.monarch import monarch_matmul

FAMILY = ["auto", "reference", "merged", "two-bmm"]
OTHERS = ["dense", "low-rank", "block-diagonal"]


def workload(dtype=torch.float32, **options) -> ProductWorkload:
    shape = ProductShape(9, 48, 4, dtype, "cpu", **options)
    return ProductWorkload(shape)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("rank", [None, 1, 5])
@pytest.mark.parametrize("peer", FAMILY + OTHERS)
def test_peers_agree_with_their_matrices(peer, rank, backward):
    problem = workload(rank=rank, backward=backward)
    problem.build(peer)()
    assert problem.check(peer).error < 1e-6


def test_the_compiled_equations_are_the_equations():
    problem = workload()
    x, right, left = (t.detach().double() for t in (problem.x, problem.right, problem.left))
    torch.testing.assert_close(
        peers.einsums(x, right, left), x @ peers.monarch_matrix(right, left).T
    )


@pytest.mark.parametrize("peer", FAMILY + OTHERS)
def test_half_precision_passes_with_room(peer):
    problem = workload(torch.bfloat16)
    problem.build(peer)()
    check = problem.check(peer)
    assert check.error < 0.8 * check.tolerance


def test_the_oracle_is_the_matrix_entry_by_entry():
    """Block l of y, from block k of x: Σ_r of a column of L and a row of R."""
    problem = workload(rank=3)
    right, left = problem.right.detach(), problem.left.detach()
    found = peers.monarch_matrix(right, left)
    for i, j in ((0, 0), (13, 47), (47, 20)):
        row, column = divmod(i, 12), divmod(j, 12)
        entry = sum(
            left[row[0], row[1], column[0] * 3 + r] * right[column[0], row[0] * 3 + r, column[1]]
            for r in range(3)
        )
        torch.testing.assert_close(found[i, j], entry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_result_is_found_out(dtype):
    problem = workload(dtype)
    right = peers.build("auto", problem)

    def interleaved(x, right, left):
        return monarch_matmul(x, right, left).unflatten(-1, (4, 12)).mT.flatten(1)

    wrong = {
        "another scale": lambda *given: 1.05 * right.function(*given),
        "outputs in another order": interleaved,
        "no gradient of a factor": lambda x, r, f: right.function(x, r, f.detach() + 0 * f),
        "not a number": lambda *given: right.function(*given) * float("nan"),
    }
    for what, function in wrong.items():
        problem._layers["auto"] = right._replace(function=function)
        assert not problem.check("auto").passes, what


def test_as_many_parameters_as_said():
    for features, blocks, rank in ((48, 4, None), (64, 8, 1), (96, 4, 2)):
        shape = ProductShape(3, features, blocks, torch.float32, "cpu", rank=rank)
        problem = ProductWorkload(shape)
        counts = {
            peer: sum(p.numel() for p in peers.build(peer, problem).parameters)
            for peer in ("auto", "low-rank", "block-diagonal", "dense")
        }
        assert counts["auto"] == shape.factor_parameters == counts["low-rank"]
        assert counts["block-diagonal"] == pytest.approx(counts["auto"], rel=0.35)
        assert counts["block-diagonal"] >= counts["auto"]
        assert counts["dense"] == features**2


@pytest.mark.parametrize(
    ("peer", "backward", "reason"),
    [
        ("triton", True, "backend 'triton' cannot run"),
        ("triton-fused", False, "expected tensors on a CUDA device"),
        ("triton-two-kernels", True, "forward only"),
    ],
)
def test_a_peer_that_cannot_take_part_says_why(monkeypatch, peer, backward, reason):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Unavailable, match=reason):
        workload(backward=backward).build(peer)


def test_work_counted_by_hand():
    sizes = {"tokens": 5, "inputs": 6, "outputs": 4, "parameters": 7, "itemsize": 2}
    assert monarch_work(**sizes, backward=False) == Work(2 * 5 * 7, 2 * (5 * 10 + 7))
    # x, the result's gradient and x's gradient; the factors are read and their gradients written.
    training = Work(3 * 2 * 5 * 7, 2 * (5 * 10 + 7 + 5 * 16 + 2 * 7))
    assert monarch_work(**sizes, backward=True) == training
    shape = ProductShape(5, 4096, 64, torch.float32, "cpu")
    assert shape.slice_rank == 1
    assert shape.parameters["of_dense"] == 2 / 64


def test_goals_are_judged_by_the_sizes_that_they_name():
    times = {"auto": 1.0, "dense": 3.0, "two-bmm": 1.4}
    figures = {peer: {"median_ms": ms} for peer, ms in times.items()}
    for device, expected in (
        (
            "cuda",
            {"1024": ("pass", 3.0), "2048": ("pass", 3.0), "4096": ("miss", 3.0)},
        ),
        ("cpu", {"4096": ("miss", 3.0)}),
    ):
        suite = make_suite("monarch", device)
        results = {case.name: {"peers": figures} for case in suite.cases}
        *over_dense, forward, training = suite.goals(results)
        assert len(over_dense) == 2 * len(expected)
        for goal in over_dense:
            features = goal["name"].split("/")[1].split("x")[1]
            assert (goal["status"], goal["value"]) == expected[features], goal
        assert forward["value"] == training["value"] == 1.4
        assert forward["status"] == ("miss" if device == "cuda" else "pass")


def test_everywhere_is_the_worst_case():
    suite = make_suite("monarch", "cpu")
    figures = {"auto": {"median_ms": 1.0}, "dense": {"median_ms": 9.0}, "two-bmm": {}}
    results = {}
    for number, case in enumerate(suite.cases):
        times = figures | {"two-bmm": {"median_ms": 1.0 + number}}
        results[case.name] = {"peers": times}
    assert [goal["value"] for goal in suite.goals(results)[-2:]] == [1.0, 2.0]


def test_a_sweep_has_all_of_its_sizes():
    """A matrix that belongs to two figures would be missing in one of them."""
    for device in ("cpu", "cuda"):
        figures: dict[str, list[int]] = {}
        for case in make_suite("monarch", device).cases:
            if case.figure:
                figures.setdefault(case.figure, []).append(case.parameters[case.x])
        if device == "cpu":
            assert sorted(figures["by tokens, training"]) == [4**n for n in range(7)]
            assert sorted(figures["by features, forward"]) == [2**n for n in range(8, 13)]
        else:
            assert sorted(figures["by features, 16 blocks, training"]) == [512, 1024, 2048, 4096]
            assert figures["by features, 64 blocks, forward"] == [4096]


def test_every_peer_has_a_line_in_its_module():
    told = inspect.getdoc(peers) or ""
    for device in ("cpu", "cuda"):
        for case in make_suite("monarch", device).cases:
            assert all(name in told for name in case.peers)
