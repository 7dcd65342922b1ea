"""Runs of the task nbce: every reading once, batches that change nothing, resuming, the report."""

import pytest
import torch

from ropewalk.evals import batches, memory
from ropewalk.evals.errors import EvaluationError
from ropewalk.evals.logits import scored_logits
from ropewalk.evals.parallel_windows import parallel_window_logits
from ropewalk.evals.report import conclusion, summarise, write_report
from ropewalk.evals.report.many_contexts import READERS
from ropewalk.evals.run_file import read_run, result_key
from ropewalk.evals.runner import evaluate

TRIALS = 2


@pytest.fixture
def request_of(tiny_request):
    def make(**changes):
        small = {"contexts": (1, 3), "context_length": 210, "depths": (0.0, 1.0), "trials": TRIALS}
        return tiny_request(**{"tasks": ("nbce",), "lengths": (), **small, **changes})

    return make


def figures(content):
    return {
        result_key(result): {name: value for name, value in result.items() if name != "seconds"}
        for result in content["results"]
    }


def test_every_reading_is_measured_once_and_windows_of_the_model_as_it_is(request_of):
    content = evaluate(request_of())
    assert content["complete"]
    assert content["configuration"]["lengths"] == []
    assert content["configuration"]["parallel_windows"] == ["rope"]
    # Two depths and two trials in each of two numbers of contexts: three readings, and two.
    assert len(figures(content)) == len(content["results"]) == 2 * TRIALS * 2 * (3 + 2)
    assert {result["length"] for result in content["results"]} == {210, 630}
    summary = summarise(content)
    assert summary.contexts is not None
    assert summary.measured == summary.planned_samples == len(content["results"])
    assert summary.contexts.rows == [
        *(("rope", reader) for reader in READERS),
        *(("rerope+log-n", reader) for reader in READERS if reader != "parallel_windows"),
    ]
    assert {cell.count for cell in summary.contexts.shares.values()} == {2 * TRIALS}


def test_together_with_other_tasks_each_has_its_lengths(request_of):
    request = request_of(
        tasks=("passkey", "nbce"), lengths=(320,), variants=("rope",), depths=(0.5,), trials=1
    )
    content = evaluate(request)
    assert content["configuration"]["lengths"] == [320]
    lengths = {(result["task"], result["length"]) for result in content["results"]}
    assert lengths == {("passkey", 320), ("nbce", 210), ("nbce", 630)}
    summary = summarise(content)
    assert summary.measured == summary.planned_samples == 1 + 2 * 3


def test_batch_sizes_do_not_change_the_figures(request_of, tmp_path):
    one = evaluate(request_of(batch_size=1, out=tmp_path / "one"))
    many = evaluate(request_of(out=tmp_path / "many"))
    assert figures(one) == figures(many)


def test_fewer_are_read_at_once_when_memory_runs_out(request_of, tmp_path, monkeypatch):
    expected = evaluate(request_of(out=tmp_path / "expected"))

    def scarce(model, tokens, scored):
        if len(tokens) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return scored_logits(model, tokens, scored)

    def scarce_windows(model, sample, *, at_once, device):
        if at_once > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return parallel_window_logits(model, sample, at_once=at_once, device=device)

    monkeypatch.setattr(batches, "scored_logits", scarce)
    monkeypatch.setattr(batches, "parallel_window_logits", scarce_windows)
    assert figures(evaluate(request_of(out=tmp_path / "scarce"))) == figures(expected)


def test_no_memory_for_one_window_is_said(request_of, monkeypatch):
    def none(model, sample, *, at_once, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batches, "parallel_window_logits", none)
    with pytest.raises(EvaluationError, match=r"out of memory on one sequence of 2[0-9]{2} tokens"):
        evaluate(request_of())
    assert not read_run(request_of().out)["complete"]


def test_an_interrupted_run_continues_and_repeats_nothing(request_of, tmp_path, monkeypatch):
    expected = evaluate(request_of(out=tmp_path / "expected"))
    calls = 0

    def sometimes(model, tokens, scored):
        nonlocal calls
        calls += 1
        if calls % 7 == 0:
            raise KeyboardInterrupt
        return scored_logits(model, tokens, scored)

    monkeypatch.setattr(batches, "scored_logits", sometimes)
    monkeypatch.setattr(memory, "enough_tokens", lambda device: 250)
    stopped = 0
    while True:
        try:
            content = evaluate(request_of())
            break
        except KeyboardInterrupt:
            stopped += 1
    assert stopped >= 2
    assert figures(content) == figures(expected)


def test_an_unfinished_run_says_so(request_of, monkeypatch):
    def never(model, sample, *, at_once, device):
        raise KeyboardInterrupt

    monkeypatch.setattr(batches, "parallel_window_logits", never)
    with pytest.raises(KeyboardInterrupt):
        evaluate(request_of())
    summary, written = write_report(request_of().out)
    assert "Not complete: " in conclusion(summary)
    assert f"of {2 * TRIALS * 2 * 5} samples" in conclusion(summary)
    assert [path.name for path in written] == ["nbce.png", "report.html"]
