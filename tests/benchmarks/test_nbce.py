"""Ways of asking many contexts write the same answer, a wrong one shows, work is counted."""

import inspect
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import nbce, plot, run
from benchmarks.case import Unavailable
from benchmarks.nbce import Asked, NBCEWorkload, nbce_work
from benchmarks.peers import nbce as peers
from benchmarks.result_file import read
from benchmarks.suites import make_suite

SMALL = Asked(contexts=3, questions=2, context_bytes=40, tokens=4, device="cpu")


@pytest.fixture(scope="module")
def workload() -> NBCEWorkload:
    return NBCEWorkload(SMALL)


@pytest.mark.parametrize("peer", ["ask", "loop", "loop-float64", "batch"])
def test_peers_write_what_the_oracle_writes(peer, workload):
    answers = workload.build(peer)()
    assert [len(answer) for answer in answers] == [4, 4]
    assert workload.check(peer).error == 0.0


def test_the_oracle_can_tell_contexts_and_questions_apart(workload):
    """Otherwise every way of asking would pass."""
    assert len({tuple(answer) for answer in workload._expected.tolist()}) == 2
    found = {
        tuple(peers.one_at_a_time(workload.model, [rows[0], row], workload))
        for rows in workload.rows
        for row in rows[1:]
    }
    assert len(found) > 2


def test_a_wrong_answer_is_found_out(workload):
    right = workload._expected.tolist()
    wrong = [right[0], [*right[1][:-1], right[1][-1] + 1]]
    workload._ways["loop"] = lambda: wrong
    check = workload.check("loop")
    assert check.error == pytest.approx(1 / 8)
    assert not check.passes
    workload._ways["loop"] = lambda: [answer[:-1] for answer in right]
    with pytest.raises(ValueError, match="tokens"):
        workload.check("loop")


def test_rows_are_context_separator_and_question(workload):
    decode = workload.tokenizer.decode
    assert len(workload.rows) == 2
    for question, rows in zip(workload.questions, workload.rows, strict=True):
        assert len(rows) == 4
        assert decode(rows[0]).endswith(f"\n\n{question}")
        for context, row in zip(workload.contexts, rows[1:], strict=True):
            assert f"{context}\n\n{question}" in decode(row)
            assert len(row) - len(rows[0]) == 40
    assert len(set(workload.contexts)) == 3


def test_work_is_what_asking_computes(workload):
    """torch counts the same products and, as it computes masked pairs, no fewer of attention."""
    ask = workload.build("ask")
    with FlopCounterMode(display=False) as counter:
        ask()
    counted = nbce_work(SMALL).flop
    assert counted <= counter.get_total_flops() <= 1.5 * counted


def test_what_is_not_installed_is_a_reason(monkeypatch, workload):
    monkeypatch.setitem(sys.modules, "ropewalk.llm", None)
    with pytest.raises(Unavailable, match=r"ropewalk\[llm\]"):
        workload.build("ask")
    nbce._model_and_text.cache_clear()
    monkeypatch.setitem(sys.modules, "ropewalk.evals.models", None)
    with pytest.raises(Unavailable, match=r"ropewalk\[eval\]"):
        NBCEWorkload(SMALL)


@pytest.mark.slow
def test_a_quick_run_measures_every_case_and_can_be_drawn(tmp_path, capsys):
    out = tmp_path / "run.json"
    options = ["--suite", "nbce", "--device", "cpu", "--quick", "--out", str(out)]
    assert run.main(options) == 0
    content = read(out)
    assert content["complete"]
    for result in content["results"]:
        assert all("median_ms" in peer for peer in result["peers"].values())
        assert result["parameters"]["dtype"] == "float32"
    assert plot.main([str(out), "--out", str(tmp_path / "plots")]) == 0
    assert list((tmp_path / "plots").glob("*.png"))


def test_goals_are_judged_by_sixteen_contexts():
    suite = make_suite("nbce", "cpu")
    times = {"ask": 1.0, "loop": 3.0, "batch": 0.9, "loop-float64": 9.0}
    figures = {peer: {"median_ms": time} for peer, time in times.items()}
    goals = suite.goals({case.name: {"peers": figures} for case in suite.cases})
    assert [(goal["value"], goal["status"]) for goal in goals] == [
        (9.0, "pass"), (3.0, "pass"), (0.9, "miss"), (3.0, "pass"), (0.9, "miss"),
    ]  # fmt: skip
    assert all("contexts-16" in goal["name"] for goal in goals)


def test_every_peer_has_a_line_in_its_module():
    told = inspect.getdoc(peers) or ""
    for case in make_suite("nbce", "cpu").cases:
        assert all(name in told for name in case.peers)


def test_the_same_model_in_float64_is_the_oracles(workload):
    assert workload.double.dtype == torch.float64
    assert workload.model.dtype == torch.float32
