"""The suite `evaluation`: what `ropewalk eval` measures, by the backend that was asked for.

An earlier commit's process has its own tests (test_earlier.py); here a stand-in takes its place.
"""

import math
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import evaluation, plot, run
from benchmarks.attention import AttentionWorkload, Shape
from benchmarks.case import Unavailable
from benchmarks.earlier import DEFAULT
from benchmarks.earlier import attention as earlier_attention
from benchmarks.earlier.attention import AttentionBesideEarlier
from benchmarks.evaluation import (
    TOLERANCE,
    Evaluation,
    EvaluationWorkload,
    evaluation_work,
    model_sizes,
)
from benchmarks.result_file import read
from benchmarks.suites import make_suite
from benchmarks.timing import Sample
from ropewalk.blocks.rotary import ReRoPE
from ropewalk.evals.request import Request
from ropewalk.evals.runner import evaluate, scored_logits
from ropewalk.kernels.rotary_attention import flash, reference, rotary_attention
from ropewalk.llm import attention_interface, is_plugged, plug

SMALL = Evaluation(ReRoPE(16), length=96, longest=96, documents=2, scored=32)


class StandIn:
    """Answers as an earlier commit would that is half as fast and exactly as right."""

    def __init__(self, commit="0" * 40, off=0.0):
        self.commit, self.off, self.asked = commit, off, []

    def run(self, request):
        self.asked.append(request)
        if "evaluation" in request:
            wanted = request["evaluation"]
            rule = ReRoPE(**wanted["rule"]["parameters"])
            sizes = (wanted[name] for name in ("length", "longest", "documents", "scored"))
            bits = EvaluationWorkload(Evaluation(rule, *sizes)).bits("auto")
            return Sample(0.2, 0.4), {"bits": [value + self.off for value in bits]}
        wanted = dict(request["attention"])
        rule = ReRoPE(**wanted.pop("rule")["parameters"])
        shape = Shape(**wanted, dtype=torch.float32, device="cpu", rule=rule)
        workload = AttentionWorkload(shape)
        workload.build("auto")
        output = workload._forwards["auto"](workload.query, workload.key, workload.value)
        if "output" in request:
            torch.save(output + self.off, request["output"])
        return Sample(0.01, 0.02), {}


@pytest.fixture(autouse=True)
def before(monkeypatch, tmp_path):
    """The stand-in that takes an earlier commit's place."""
    stand_in = StandIn()
    stand_in.new_file = lambda: tmp_path / "output.pt"
    for module in (evaluation, earlier_attention):
        monkeypatch.setattr(module, "earlier", lambda commit: stand_in)
    return stand_in


def arguments(out, *more):
    return ["--suite", "evaluation", "--device", "cpu", "--quick", "--out", str(out), *more]


def test_a_quick_run_measures_every_pair_and_judges_it_by_its_own_attention(tmp_path, capsys):
    out = tmp_path / "run.json"
    assert run.main(arguments(out)) == 0
    content = read(out)
    assert content["complete"]
    results = {result["name"]: result["peers"] for result in content["results"]}
    assert len(results) == 4
    for name, peers in results.items():
        assert list(peers) == ["auto", "reference", "before"]
        for peer in peers.values():
            assert peer["check"]["error"] <= peer["check"]["tolerance"]
            assert ("values" in peer["check"]) == ("/evaluation/" in name)
        told = (200.0, 400.0) if "/evaluation/" in name else (10.0, 20.0)
        assert (peers["before"]["median_ms"], peers["before"]["host_ms"]) == told
        if "/evaluation/" in name:
            assert peers["auto"]["check"]["tolerance"] == 1e-5
            assert len(peers["before"]["check"]["values"]) == 2
            assert peers["before"]["check"]["values"] == peers["auto"]["check"]["values"]
    compared = [("before", "median_ms"), ("before", "host_ms"), ("reference", "median_ms")]
    wanted = [(window, *pair) for window in (16, 32) for pair in compared]
    for (window, other, figure), goal in zip(wanted, content["goals"], strict=True):
        speeds = {
            kind: peers[other][figure] / peers["auto"][figure]
            for kind in ("attention", "evaluation")
            for peers in [results[f"rerope-{window}/{kind}/96"]]
        }
        assert goal["target"] == pytest.approx(speeds["attention"], rel=1e-3)
        assert goal["value"] == pytest.approx(speeds["evaluation"], rel=1e-3)
        reached = goal["value"] >= goal["target"]
        assert goal["status"] == ("pass" if reached else "miss")
    assert plot.main([str(out), "--out", str(tmp_path / "plots")]) == 0
    assert (tmp_path / "plots" / "goals.png").exists()


def test_half_a_pair_leaves_the_goal_without_its_target(tmp_path, capsys):
    out = tmp_path / "run.json"
    assert run.main(arguments(out, "--only", "rerope-16/evaluation/96")) == 0
    assert {(goal["status"], goal["target"]) for goal in read(out)["goals"]} == {
        ("not measured", None)
    }
    assert "–, wanted at least – (rerope-16/attention/96 has not run)" in capsys.readouterr().out


def test_bits_per_byte_are_those_of_ropewalk_eval(tmp_path):
    workload = EvaluationWorkload(SMALL)
    request = Request(
        tmp_path / "run",
        variants=("rerope:window=16",),
        tasks=("perplexity",),
        lengths=(96,),
        documents=2,
        score_tokens=32,
        device="cpu",
    )
    expected = [
        result["nats"] * result["tokens"] / (math.log(2) * result["bytes"])
        for result in evaluate(request)["results"]
    ]
    assert len(expected) == 2
    assert workload.bits("auto") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("peer", ["auto", "reference"])
def test_the_timed_call_runs_that_backend_alone_and_leaves_the_model_as_it_was(peer, monkeypatch):
    taken = []
    for module in (flash, reference):
        forward = module.forward

        def spy(problem, module=module, forward=forward):
            taken.append(module)
            return forward(problem)

        monkeypatch.setattr(module, "forward", spy)
    workload = EvaluationWorkload(SMALL)
    workload.build(peer)()
    layers = workload.model.config.num_hidden_layers
    assert taken == [reference if peer == "reference" else flash] * layers * SMALL.documents
    assert not is_plugged(workload.model)


@pytest.mark.parametrize("factor", [1.01, math.nan])
def test_a_backend_that_changes_the_bits_is_found_out(factor, monkeypatch):
    def wrong(*inputs, backend, **options):
        output = rotary_attention(*inputs, backend=backend, **options)
        return output * factor if backend == "auto" else output

    monkeypatch.setattr(attention_interface, "rotary_attention", wrong)
    workload = EvaluationWorkload(SMALL)
    for peer in ("auto", "reference"):
        check = workload.check(peer)
        assert not check.passes
        assert check.tolerance == TOLERANCE


def test_the_weights_that_are_counted_are_the_models():
    matrices = [
        parameter.numel()
        for parameter in EvaluationWorkload(SMALL).model.parameters()
        if parameter.ndim == 2
    ]
    assert evaluation_work(SMALL).bytes == SMALL.documents * 4 * sum(matrices)


def test_the_operations_that_are_counted_are_those_of_torch(monkeypatch):
    """Torch counts the model around the attention; of that, visible pairs are counted by hand."""

    def nothing(query, key, value, **options):
        return torch.zeros_like(query)

    workload = EvaluationWorkload(SMALL)
    monkeypatch.setattr(attention_interface, "rotary_attention", nothing)
    plugged = plug(workload.model, distance=SMALL.rule)  # its trial runs are not counted
    with plugged, torch.no_grad(), FlopCounterMode(display=False) as counter:
        for sample in workload.task.samples(SMALL.length):
            scored_logits(workload.model, torch.from_numpy(sample.tokens)[None], sample.scored)
    sizes = model_sizes()
    tokens = SMALL.length - 1
    pairs = tokens * SMALL.length // 2
    # In the last layer, those of the queries whose logits are scored.
    last = sum(range(tokens - SMALL.scored + 1, tokens + 1))
    pairs = (sizes["num_hidden_layers"] - 1) * pairs + last
    width = sizes["num_attention_heads"] * sizes["head_dim"]
    attention = SMALL.documents * 4 * width * pairs
    assert counter.get_total_flops() + attention == evaluation_work(SMALL).flop


def test_an_earlier_commit_is_asked_for_the_same_evaluation(before):
    workload = EvaluationWorkload(SMALL)
    assert workload.build("before")() == Sample(0.2, 0.4)
    (request,) = before.asked
    assert request["evaluation"] == {
        "model": "default",
        "rule": {"kind": "ReRoPE", "parameters": {"window": 16}},
        "length": 96,
        "longest": 96,
        "documents": 2,
        "scored": 32,
    }


@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (1e-5, False), (math.nan, False)])
def test_an_earlier_commit_that_has_other_bits_is_found_out(before, off, passes):
    before.off = off
    check = EvaluationWorkload(SMALL).check("before")
    assert check.passes == passes
    assert check.tolerance == pytest.approx(1e-6 * math.sqrt(256 / 32))
    longer = Evaluation(ReRoPE(16), length=600, longest=600, documents=1, scored=300)
    assert EvaluationWorkload(longer).check("before").tolerance == 1e-6


def test_other_bits_of_an_earlier_commit_are_an_error_with_both_values_in_the_file(
    before, tmp_path
):
    before.off = math.nan
    out = tmp_path / "run.json"
    assert run.main(arguments(out, "--only", "rerope-16/evaluation/96")) == 1
    (result,) = read(out)["results"]
    assert result["peers"]["before"]["check"]["values"] == [None, None]
    assert "differs from the oracle by nan" in result["peers"]["before"]["error"]
    assert all(result["peers"]["auto"]["check"]["values"])


@pytest.mark.parametrize(("off", "passes"), [(0.0, True), (0.1, False)])
def test_an_earlier_commits_attention_is_compared_with_the_oracle(before, off, passes):
    before.off = off
    shape = Shape(1, 4, 4, 95, 95, 64, torch.float32, "cpu", ReRoPE(16))
    workload = AttentionBesideEarlier(shape, "0" * 40)
    assert workload.build("before")() == Sample(0.01, 0.02)
    assert workload.check("before").passes == passes
    assert not before.new_file().exists()


def test_attention_beside_an_earlier_commit_is_float32_on_a_cpu():
    shape = Shape(1, 4, 4, 95, 95, 64, torch.bfloat16, "cpu", ReRoPE(16))
    with pytest.raises(ValueError, match="expected float32 on a CPU"):
        AttentionBesideEarlier(shape, "0" * 40)


def test_without_the_commit_its_peers_are_skipped_with_the_reason(tmp_path, monkeypatch, capsys):
    def missing(commit):
        raise Unavailable(f"commit {commit!r} is not to be had here")

    for module in (evaluation, earlier_attention):
        monkeypatch.setattr(module, "earlier", missing)
    out = tmp_path / "run.json"
    assert run.main(arguments(out, "--only", "rerope-16/*")) == 0
    content = read(out)
    reason = f"commit {DEFAULT!r} is not to be had here"
    for result in content["results"]:
        assert result["peers"]["before"] == {"skipped": reason}
    assert content["before"] == DEFAULT
    assert content["goals"][0]["status"] == "not measured"
    assert reason in content["goals"][0]["reason"]


def test_a_file_of_another_earlier_commit_is_not_continued(tmp_path, monkeypatch, capsys):
    out = tmp_path / "run.json"
    names = {"old": "a" * 40, "older": "b" * 40}
    monkeypatch.setattr(run, "full_name", names.__getitem__)
    one = arguments(out, "--only", "rerope-16/attention/*", "--before")
    assert run.main([*one, "old"]) == 0
    assert run.main([*one, "old"]) == 0
    assert run.main([*one, "older"]) == 2
    assert f"holds a run with before '{'a' * 40}'" in capsys.readouterr().err


def test_what_is_not_installed_is_a_reason(monkeypatch):
    evaluation._model_and_task.cache_clear()
    monkeypatch.setitem(sys.modules, "ropewalk.evals.models", None)
    with pytest.raises(Unavailable, match=r"ropewalk\[eval\]"):
        EvaluationWorkload(SMALL)


def test_a_gpu_has_no_cases_and_one_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert make_suite("evaluation", "cuda").cases == ()
    options = ["--suite", "evaluation", "--device", "cuda", "--out", str(tmp_path / "run.json")]
    assert run.main(options) == 2
    message = "error: suite 'evaluation' has no cases for --device cuda\n"
    assert capsys.readouterr().err == message
