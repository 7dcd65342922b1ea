"""How long rows may be: what the model reads, and no further than all rows are rotated alike."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from ropewalk.blocks.rotary import DynamicNTK, FrequencyRule, LongRoPE, NTKAware, ReRoPE, YaRN
from ropewalk.llm import NBCE, plug
from ropewalk.llm.nbce.limits import limit_of

ORIGINAL = 48
LONG = ["the cat sat on a mat, and slept for long.", "a dog"]
SHORT = ["the cat sat on it", "a dog"]
QUESTIONS = ["who?", "how many birds?"]
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 3.0, 6.0, 9.0],
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
NATIVE: dict[str, dict[str, Any]] = {
    "longrope": {"max_position_embeddings": 4 * ORIGINAL, "rope_parameters": _LONGROPE},
    "dynamic": {
        "max_position_embeddings": ORIGINAL,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    },
}
PLUGGED = {
    "DynamicNTK": DynamicNTK(factor=4.0, original_length=ORIGINAL),
    "LongRoPE": LongRoPE([1.0, 1.1, 1.2, 1.3], [1.5, 3.0, 6.0, 9.0], ORIGINAL, factor=4.0),
}


def _check_exact(model: Any, tokenizer: Any, loop: Any, same: Any, contexts: list[str]) -> None:
    reader = NBCE(model, tokenizer, separator="\n")
    reader.encode(contexts)
    for question, answer in zip(QUESTIONS, reader.ask(QUESTIONS, max_new_tokens=6), strict=True):
        same(answer, loop(model, question, contexts, prefix="", steps=6))


def _check_refused(model: Any, tokenizer: Any, monkeypatch: Any, name: str) -> None:
    reader = NBCE(model, tokenizer, separator="\n", max_length=500)
    reader.encode(SHORT)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(model), "forward", never)
    with pytest.raises(ValueError, match=r"'context 1'.*is 17 tokens long.*makes 49") as told:
        reader.ask(QUESTIONS[0], max_new_tokens=26)
    for part in (name, f"within {ORIGINAL} tokens", "read together", "NTKAware, YaRN", "distance"):
        assert part in str(told.value)
    with pytest.raises(ValueError, match=r"contexts\[0\].*makes 52"):
        reader.ask(QUESTIONS[0], LONG, max_new_tokens=5)
    with pytest.raises(ValueError, match=r"contexts\[1\] \('context 2'\) is 60 .* follow the len"):
        reader.encode(["a", "b" * 60])


@pytest.mark.parametrize("name", NATIVE)
def test_own_frequencies_that_follow_the_length(
    make_model, tokenizer, loop, same, monkeypatch, name
):
    model = make_model(**NATIVE[name])
    # A text read before leaves the model with the frequencies of its length.
    model(torch.ones(1, 2 * ORIGINAL, dtype=torch.int64))
    _check_exact(model, tokenizer, loop, same, SHORT)
    with plug(model, distance=ReRoPE(window=8)):
        _check_exact(model, tokenizer, loop, same, SHORT)
        with pytest.raises(ValueError, match=name):
            NBCE(model, tokenizer).ask(QUESTIONS[0], LONG)
    with plug(model, frequency=NTKAware(factor=4.0)):
        _check_exact(model, tokenizer, loop, same, LONG)
    _check_refused(model, tokenizer, monkeypatch, name)


@pytest.mark.parametrize("name", PLUGGED)
@pytest.mark.parametrize("distance", [None, ReRoPE(window=8)], ids=["plain", "rerope"])
def test_plugged_frequencies_that_follow_the_length(
    model, tokenizer, loop, same, monkeypatch, name, distance
):
    with plug(model, frequency=PLUGGED[name], distance=distance):
        _check_exact(model, tokenizer, loop, same, SHORT)
        _check_refused(model, tokenizer, monkeypatch, name)


@dataclass(frozen=True)
class Growing(FrequencyRule):
    """A rule of the user's own, which does not say up to where nothing changes."""

    name: ClassVar[str] = "growing"
    paper: ClassVar[str] = "none"

    @property
    def depends_on_length(self) -> bool:
        return True

    def _inverse_frequencies(
        self, rotary_dim: int, base: float, length: int | torch.Tensor | None
    ) -> torch.Tensor:
        return PLUGGED["DynamicNTK"].inverse_frequencies(rotary_dim, base, length)

    def to_rope_parameters(self, **options: Any) -> dict[str, Any]:
        return PLUGGED["DynamicNTK"].to_rope_parameters(**options)


def test_a_rule_of_ones_own_that_follows_the_length_is_refused(model, tokenizer):
    with plug(model, frequency=Growing()):
        with pytest.raises(ValueError, match="under Growing the frequencies follow") as told:
            NBCE(model, tokenizer).ask(QUESTIONS[0], ["a"], max_new_tokens=1)
        assert "keep rows within" not in str(told.value)


@pytest.mark.parametrize("name", PLUGGED)
def test_nothing_follows_the_length_up_to_the_original_one(name):
    rule = PLUGGED[name]
    first = rule.inverse_frequencies(8, 10000.0, 1)
    for length in range(1, ORIGINAL + 1):
        assert torch.equal(rule.inverse_frequencies(8, 10000.0, length), first)
        assert rule.attention_factor(length) == rule.attention_factor(1)
    assert not torch.equal(rule.inverse_frequencies(8, 10000.0, ORIGINAL + 1), first)


def test_longrope_with_one_list_of_factors_goes_as_far_as_the_model(
    make_model, tokenizer, loop, same
):
    parameters = {**_LONGROPE, "short_factor": _LONGROPE["long_factor"]}
    model = make_model(max_position_embeddings=4 * ORIGINAL, rope_parameters=parameters)
    _check_exact(model, tokenizer, loop, same, LONG)


SCALED = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"factor": 4.0},
    "linear": {"factor": 4.0},
}


@pytest.mark.parametrize("name", SCALED)
def test_a_scaled_model_reads_as_far_as_its_scaling(make_model, tokenizer, loop, same, name):
    parameters = {"rope_type": name, "rope_theta": 10000.0, **SCALED[name]}
    if name != "linear":
        parameters["original_max_position_embeddings"] = 24
    model = make_model(rope_parameters=parameters)
    assert limit_of(model, None) == 96
    _check_exact(model, tokenizer, loop, same, LONG)
    with plug(model, frequency=YaRN(factor=2.0, original_length=24)):
        assert limit_of(model, None) is None


@pytest.mark.parametrize("name", ["gpt2", "opt", "mpt", "llama"])
def test_positions_of_every_name_are_a_limit(make_model, tokenizer, name):
    model = make_model(name)
    assert limit_of(model, None) == 96
    with pytest.raises(ValueError, match=r"is 120 tokens long.*may have 96"):
        NBCE(model, tokenizer).encode(["a" * 120])


def test_what_a_model_was_trained_with_counts(make_model):
    model = make_model()
    model.config.ropewalk = {"variant": "rerope:window=8", "trained_length": 32}
    assert limit_of(model, None) == 32
