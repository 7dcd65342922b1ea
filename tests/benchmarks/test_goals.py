"""A goal passes or misses by what was measured, and never by what was not."""

import pytest

from benchmarks.goals import NotMeasured, additional_gb, fastest_ms, judge, median_ms
from benchmarks.suites import SUITES, make_suite

RESULTS = {
    "case": {
        "peers": {
            "ours": {"median_ms": 2.0},
            "theirs": {"median_ms": 3.0},
            "absent": {"skipped": "not installed"},
            "wrong": {"error": "differs"},
            "memory": {"additional_mib": 1000.0},
        }
    },
    "broken": {"error": "no memory", "peers": {}},
}


def test_values_come_from_the_case():
    assert median_ms(RESULTS, "case", "ours") == 2.0
    assert fastest_ms(RESULTS, "case", ("theirs", "absent", "ours")) == 2.0
    assert additional_gb(RESULTS, "case", "memory") == pytest.approx(1.048576)


@pytest.mark.parametrize(
    ("case", "peer", "reason"),
    [
        ("never", "ours", "has not run"),
        ("broken", "ours", "no memory"),
        ("case", "absent", "not installed"),
        ("case", "wrong", "differs"),
        ("case", "nobody", "nobody is not in case"),
    ],
)
def test_what_is_missing_is_no_pass(case, peer, reason):
    with pytest.raises(NotMeasured, match=reason):
        median_ms(RESULTS, case, peer)
    goal = judge("fast", "at most", 1e9, lambda: median_ms(RESULTS, case, peer))
    assert goal["status"] == "not measured"
    assert reason in goal["reason"]
    assert goal["value"] is None


@pytest.mark.parametrize(
    ("comparison", "value", "status"),
    [
        ("at least", 1.5, "pass"),
        ("at least", 1.4999, "miss"),
        ("at most", 1.5, "pass"),
        ("at most", 1.5001, "miss"),
    ],
)
def test_a_goal_is_judged_on_the_right_side(comparison, value, status):
    assert judge("goal", comparison, 1.5, lambda: value)["status"] == status


@pytest.mark.parametrize(("value", "status"), [(1.5, "pass"), (1.4999, "miss")])
def test_a_target_may_be_measured_in_the_same_run(value, status):
    def target():
        return median_ms(RESULTS, "case", "theirs") / median_ms(RESULTS, "case", "ours")

    goal = judge("goal", "at least", target, lambda: value)
    assert (goal["target"], goal["status"]) == (1.5, status)
    missing = judge("goal", "at least", lambda: median_ms(RESULTS, "never", "ours"), lambda: value)
    assert (missing["target"], missing["value"]) == (None, None)
    assert missing["status"] == "not measured"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_goal_names_cases_and_peers_that_the_suite_has(device):
    """With every case measured, no goal may be left without a value."""
    for name in SUITES:
        suite = make_suite(name, device)
        times = ("median_ms", "host_ms", "of_copy", "tflop_s")
        figures = dict.fromkeys((*times, "additional_mib", "peak_mib", "saved_mib"), 1.0)
        results = {case.name: {"peers": dict.fromkeys(case.peers, figures)} for case in suite.cases}
        for goal in suite.goals(results):
            assert goal["status"] in ("pass", "miss"), goal
        assert all(goal["status"] == "not measured" for goal in suite.goals({}))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("quick", [False, True])
def test_names_of_cases_are_unique(suite, device, quick):
    names = [case.name for case in make_suite(suite, device, quick=quick).cases]
    assert len(names) == len(set(names))
