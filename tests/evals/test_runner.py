"""Runs: the figures are the model's own, batches do not change them, and nothing is done twice."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional

from ropewalk.evals import batches
from ropewalk.evals.errors import EvaluationError, InputError
from ropewalk.evals.models import open_model
from ropewalk.evals.plan import make_plan
from ropewalk.evals.run_file import read_run, result_key
from ropewalk.evals.runner import evaluate, scored_logits
from ropewalk.llm import device_memory
from ropewalk.llm.variants import parse_variant


def figures(content):
    """Results without their timing."""
    return {
        result_key(result): {name: value for name, value in result.items() if name != "seconds"}
        for result in content["results"]
    }


def assert_same_figures(one, other):
    one, other = figures(one), figures(other)
    assert one.keys() == other.keys()
    for key, result in one.items():
        loss = result.pop("nats", 0.0)
        assert loss == pytest.approx(other[key].pop("nats", 0.0), rel=1e-5)
        assert result == other[key]


def test_every_cell_is_measured_once(tiny_request):
    content = evaluate(tiny_request())
    assert content["complete"]
    keys = [result_key(result) for result in content["results"]]
    assert len(set(keys)) == len(keys) == 2 * 3 * (3 + 2 * 2)
    assert content == read_run(tiny_request().out)
    assert content["configuration"]["variants"]["rerope+log-n"] == {
        "distance": {"name": "rerope", "window": 40},
        "log_n": {"name": "log-n", "length": 160, "clamp": True},
    }


def test_losses_are_those_of_a_plain_forward_pass(tiny_request, tiny_model):
    request = tiny_request(tasks=("perplexity",), variants=("rope", "rerope:window=60"))
    content = evaluate(request)
    plan = make_plan(request)
    model = open_model(str(tiny_model)).load(dtype=torch.float32, device=torch.device("cpu"))
    for result in content["results"]:
        samples = plan.tasks[0].samples(result["length"])
        (sample,) = (sample for sample in samples if sample.key == result["sample"])
        tokens = torch.from_numpy(sample.tokens)[None]
        with torch.no_grad(), parse_variant(result["variant"]).plug(model):
            logits = model(input_ids=tokens).logits[0, -sample.scored - 1 : -1]
        expected = functional.cross_entropy(logits, tokens[0, -sample.scored :])
        assert result["nats"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_key_counts_exactly_when_greedy_decoding_writes_it(tiny_request, tiny_model):
    """The answer is replaced by what the model writes, so that both outcomes occur."""
    plan = make_plan(tiny_request(tasks=("passkey",)))
    model = open_model(str(tiny_model)).load(dtype=torch.float32, device=torch.device("cpu"))
    task = plan.tasks[0]
    for sample in task.samples(320):
        prompt = torch.from_numpy(sample.tokens[: -sample.scored])[None]
        written = model.generate(
            prompt, do_sample=False, max_new_tokens=sample.scored, eos_token_id=None
        )[0, -sample.scored :].numpy()
        for wrong in (False, True):
            tokens = sample.tokens.copy()
            tokens[-sample.scored :] = written
            if wrong:
                tokens[-2] = (tokens[-2] + 1) % 264
            changed = type(sample)(sample.key, tokens, sample.scored, sample.about)
            with torch.inference_mode():
                logits = scored_logits(model, torch.from_numpy(tokens)[None], sample.scored)[0]
            assert task.measure(changed, logits)["correct"] is not wrong


def test_batch_sizes_do_not_change_the_figures(tiny_request, tmp_path):
    one = evaluate(tiny_request(batch_size=1, out=tmp_path / "one"))
    many = evaluate(tiny_request(out=tmp_path / "many"))
    assert_same_figures(one, many)


def test_models_without_logits_to_keep_are_sliced(tiny_model):
    model = open_model(str(tiny_model)).load(dtype=torch.float32, device=torch.device("cpu"))

    class Old(torch.nn.Module):
        def forward(self, input_ids, use_cache):
            return model(input_ids=input_ids, use_cache=use_cache)

    tokens = torch.randint(3, 259, (2, 30))
    with torch.no_grad():
        torch.testing.assert_close(scored_logits(Old(), tokens, 7), scored_logits(model, tokens, 7))


def test_a_batch_is_halved_when_memory_runs_out(tiny_request, tmp_path, monkeypatch):
    expected = evaluate(tiny_request(out=tmp_path / "expected"))
    sizes = []

    def scarce(model, tokens, scored):
        sizes.append(len(tokens))
        if len(tokens) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return scored_logits(model, tokens, scored)

    monkeypatch.setattr(batches, "scored_logits", scarce)
    assert_same_figures(evaluate(tiny_request(out=tmp_path / "scarce")), expected)
    tried_too_much = [size for size in sizes if size > 1]
    # Learned once for each length of sequences, not met again for each batch and variant.
    assert 1 <= len(tried_too_much) <= 2 * 3 * 2
    assert len(tried_too_much) < len(sizes) / 3


def test_no_memory_for_one_sequence_keeps_what_is_there(tiny_request, monkeypatch):
    calls = []

    def fails_later(model, tokens, scored):
        calls.append(len(tokens))
        if len(calls) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return scored_logits(model, tokens, scored)

    monkeypatch.setattr(batches, "scored_logits", fails_later)
    with pytest.raises(EvaluationError, match="out of memory on one sequence of"):
        evaluate(tiny_request())
    content = read_run(tiny_request().out)
    assert not content["complete"]
    assert len(content["results"]) >= 3


def test_other_errors_are_not_taken_for_memory(tiny_request, monkeypatch):
    def broken(model, tokens, scored):
        raise RuntimeError("a bug")

    monkeypatch.setattr(batches, "scored_logits", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        evaluate(tiny_request())


def test_an_interrupted_run_continues_and_repeats_nothing(tiny_request, tmp_path, monkeypatch):
    expected = evaluate(tiny_request(out=tmp_path / "expected"))
    monkeypatch.setattr(device_memory, "ENOUGH_TOKENS", {"cpu": 640})
    interrupted = 0
    computed = 0

    def counted(model, tokens, scored):
        nonlocal computed
        computed += len(tokens)
        if computed % 11 == 0:
            computed -= len(tokens)
            raise KeyboardInterrupt
        return scored_logits(model, tokens, scored)

    monkeypatch.setattr(batches, "scored_logits", counted)
    while True:
        before = json.dumps(figures_of(tiny_request().out))
        try:
            content = evaluate(tiny_request())
            break
        except KeyboardInterrupt:
            interrupted += 1
            computed += 1
            after = figures_of(tiny_request().out)
            assert json.dumps(after[: len(json.loads(before))]) == before
    assert interrupted >= 2
    assert_same_figures(content, expected)
    done = evaluate(tiny_request())
    assert done["results"] == content["results"]


def test_a_continued_run_says_what_is_done(tiny_request, monkeypatch):
    calls = 0

    def once(model, tokens, scored):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return scored_logits(model, tokens, scored)

    monkeypatch.setattr(batches, "scored_logits", once)
    monkeypatch.setattr(device_memory, "ENOUGH_TOKENS", {"cpu": 1})
    said = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_request(), Console(file=said))
    assert "continuing" not in said.getvalue()
    done = len(figures_of(tiny_request().out))
    content = evaluate(tiny_request(), Console(file=said))
    assert 0 < done < len(content["results"])
    expected = f"continuing: {done} of {len(content['results'])} samples are done"
    assert expected in said.getvalue()


def figures_of(folder):
    return read_run(folder)["results"] if (folder / "run.json").exists() else []


def test_a_finished_run_loads_no_model(tiny_request, monkeypatch):
    evaluate(tiny_request(variants=("rope",)))
    monkeypatch.setattr("ropewalk.evals.models.ModelSource.load", None)
    assert evaluate(tiny_request(variants=("rope",)))["complete"]


def test_lists_of_numbers_do_not_keep_a_run_from_going_on(tiny_request, monkeypatch):
    factors = "/".join(["1.5"] * 4)
    variant = f"longrope:short_factor={factors},long_factor={factors}"
    first = evaluate(tiny_request(variants=(variant,), tasks=("perplexity",)))
    monkeypatch.setattr("ropewalk.evals.models.ModelSource.load", None)
    assert evaluate(tiny_request(variants=(variant,), tasks=("perplexity",))) == first


def test_a_variant_the_model_cannot_run_is_refused_before_any_work(tiny_request, monkeypatch):
    def refuse(self, model):
        raise ValueError("this model cannot be plugged because of a test\nsecond line")

    monkeypatch.setattr("ropewalk.llm.variants.ResolvedVariant.plug", refuse)
    with pytest.raises(InputError, match=r"variant 'rope' on model .* because of a test$"):
        evaluate(tiny_request())
    assert not tiny_request().out.exists()


def test_two_models_share_a_run(tiny_request, tiny_model):
    content = evaluate(tiny_request(variants=("rope", f"rope@{tiny_model}"), tasks=("perplexity",)))
    values = {
        label: [r["nats"] for r in content["results"] if r["variant"] == label]
        for label in content["configuration"]["variants"]
    }
    first, second = values.values()
    assert np.allclose(first, second)
