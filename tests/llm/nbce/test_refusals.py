"""What cannot be asked is refused before the model runs, with what to do instead."""

import functools
from typing import Any

import pytest
import torch
import transformers
from transformers import TextStreamer

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.blocks.rotary import ReRoPE
from ropewalk.llm import NBCE, plug

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
QUESTION = "who sat?"


@pytest.fixture
def reader(model, tokenizer, monkeypatch) -> NBCE:
    """A reader that has read contexts, of a model that must not run any more."""
    reader = NBCE(model, tokenizer, separator="\n")
    reader.encode(CONTEXTS)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(model), "forward", never)
    return reader


BAD_CONTEXTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"contexts": []}, ValueError, "contexts: expected at least one, got none"),
    ({"contexts": {}}, ValueError, "contexts: expected at least one, got none"),
    ({"contexts": "one text"}, TypeError, "got str; put a single context into a list"),
    ({"contexts": b"one text"}, TypeError, "got bytes"),
    ({"contexts": 3}, TypeError, "got int"),
    ({"contexts": ["a", None]}, TypeError, r"contexts\[1\]: expected a text, got NoneType"),
    ({"contexts": ["a", " \n"]}, ValueError, r"contexts\[1\] \('context 2'\) is empty"),
    ({"contexts": {"x": "a", "y": ""}}, ValueError, r"contexts\[1\] \('y'\) is empty"),
    ({"contexts": ["a", "b"], "names": ["x"]}, ValueError, "expected 2, one for each.*got 1"),
    ({"contexts": ["a", "b"], "names": ["x", "x"]}, ValueError, "distinct.*'x' more than once"),
    ({"contexts": ["a", "b"], "names": "xy"}, TypeError, "got one str"),
    ({"contexts": ["a", "b"], "names": ["x", 1]}, TypeError, r"names\[1\]: expected a text"),
    ({"contexts": {"x": "a"}, "names": ["y"]}, ValueError, "come with names of their own"),
    ({"contexts": ["a"], "prefix": None}, TypeError, "prefix: expected a text, got NoneType"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CONTEXTS)
def test_bad_contexts(reader, arguments, error, message):
    with pytest.raises(error, match=message):
        reader.encode(**arguments)


BAD_QUESTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"questions": ""}, ValueError, r"questions\[0\] is empty"),
    ({"questions": ["who?", " "]}, ValueError, r"questions\[1\] is empty"),
    ({"questions": []}, ValueError, "questions: expected at least one, got none"),
    ({"questions": 5}, TypeError, "expected a text or a list of texts, got int"),
    ({"questions": b"who?"}, TypeError, "expected a text or a list of texts, got bytes"),
    ({"questions": ["who?", 5]}, TypeError, r"questions\[1\]: expected a text, got int"),
    ({"contexts": "a text"}, TypeError, "put a single context into a list"),
    ({"contexts": []}, ValueError, "contexts: expected at least one"),
    ({"prior": [1.0]}, ValueError, r"shape \(3,\) or \(questions, 3\).*got \(1,\)"),
    ({"prior": [1.0, -1.0, 1.0]}, ValueError, "finite weights of at least 0"),
    ({"prior": [1.0, float("nan"), 1.0]}, ValueError, "finite weights of at least 0"),
    ({"prior": [0.0, 0.0, 0.0]}, ValueError, "at least one weight above 0"),
    ({"prior": [[1.0, 1, 1], [1, 1, 1]]}, ValueError, "weights for 1 questions, got 2"),
    ({"prior": ["a", "b", "c"]}, TypeError, "prior: expected a weight for each context"),
    ({"contexts": ["a"], "prior": [1.0, 2.0]}, ValueError, r"shape \(1,\)"),
    ({"max_new_tokens": 0}, ValueError, "max_new_tokens: expected at least 1, got 0"),
    ({"max_new_tokens": 2.5}, TypeError, "max_new_tokens: expected an integer, got 2.5"),
    ({"temperature": 0.5}, ValueError, "temperature=0.5: expected do_sample=True"),
    ({"stop": ""}, ValueError, "stop: expected texts that are not empty"),
    ({"stop": ["a", 3]}, TypeError, "stop: expected a text, got int"),
    ({"num_beams": 3}, ValueError, "num_beams=3: expected 1"),
    ({"num_return_sequences": 3}, ValueError, "num_return_sequences=3: expected 1"),
    ({"assistant_model": object()}, ValueError, "assistant_model: expected None"),
    ({"stop_strings": ["a"]}, ValueError, "use stop instead"),
    ({"attention_mask": 1}, ValueError, "attention_mask is set by the reader"),
    ({"max_length": 7}, ValueError, "max_length is set by the reader"),
    ({"max_new_token": 3}, ValueError, "not used by the model: .'max_new_token'.*typos"),
    ({"temperature": 0.0, "do_sample": True}, ValueError, "has to be a strictly positive float"),
    ({"temperature": "a", "do_sample": True}, ValueError, "has to be a strictly positive float"),
    ({"top_k": -2, "do_sample": True}, ValueError, "has to be a strictly positive integer"),
    ({"repetition_penalty": 0}, ValueError, "has to be a strictly positive float, but is 0"),
    ({"eos_token_id": "a"}, TypeError, "eos_token_id: expected a token's number.*got 'a'"),
    ({"eos_token_id": [2, None, "a"]}, TypeError, "eos_token_id: expected a token's number"),
    ({"max_time": "a"}, TypeError, "max_time: expected a number of seconds, got 'a'"),
    ({"min_new_tokens": "a"}, TypeError, "of the right kinds, got min_new_tokens='a'"),
    ({"num_beams": "a"}, ValueError, "num_beams=a: expected 1"),
    ({"streamer": "a"}, TypeError, "streamer: expected an object with put and end.*got 'a'"),
    ({"logits_processor": 3}, TypeError, "logits_processor: expected a list.*got 3; put"),
    ({"logits_processor": lambda *_: 0}, TypeError, "put a single one into a list"),
    ({"logits_processor": ["a"]}, TypeError, "logits_processor: expected a list of functions"),
    ({"stopping_criteria": "a"}, TypeError, "stopping_criteria: expected a list.*got 'a'"),
    ({"stopping_criteria": [3]}, TypeError, "stopping_criteria: expected a list of functions"),
    ({"prefix_allowed_tokens_fn": 3}, TypeError, "prefix_allowed_tokens_fn: expected a function"),
    ({"stop": 3}, TypeError, "stop: expected a text or a list of texts, got 3"),
    ({"generation_config": {"top_k": 3}}, TypeError, "expected a transformers GenerationConfig"),
    ({"do_sample": "yes"}, TypeError, "do_sample: expected True or False, got 'yes'"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_QUESTIONS)
@pytest.mark.parametrize("contexts", [None, CONTEXTS], ids=["read", "texts"])
def test_bad_questions(reader, contexts, arguments, error, message):
    # The model of this reader fails when it is run, so that texts are not read either.
    before = reader.encoded
    with pytest.raises(error, match=message):
        reader.ask(
            **{"questions": QUESTION, "contexts": contexts, "max_new_tokens": 9, **arguments}
        )
    assert reader.encoded is before


def test_a_streamer_takes_one_question(reader, tokenizer):
    with pytest.raises(ValueError, match="streamer: expected a single question, got 2"):
        reader.ask([QUESTION] * 2, streamer=TextStreamer(tokenizer))


def test_weights_go_with_named_poolings_only(model, tokenizer):
    own = ContextMerge(pooling=lambda log_probs, entropies: log_probs.amax(-2))
    with pytest.raises(ValueError, match="prior: expected None where pooling is a function"):
        NBCE(model, tokenizer, own).ask(QUESTION, CONTEXTS, prior=[1.0, 1.0, 1.0])


def test_nothing_encoded(model, tokenizer):
    with pytest.raises(ValueError, match="nothing has been encoded yet"):
        NBCE(model, tokenizer).ask(QUESTION)


def test_a_context_that_is_too_long_is_named_and_never_cut(reader):
    too_long = {"short.txt": "a", "long.txt": "b" * 90}
    with pytest.raises(ValueError, match=r"contexts\[1\] \('long.txt'\) is 90 tokens long") as told:
        reader.encode(too_long, prefix="read: ")
    for part in ("after 7 of the prefix", "may have 96", "split it", "plug", "max_length"):
        assert part in str(told.value)
    with pytest.raises(ValueError, match=r"contexts\[0\] \('context 1'\) is 97 tokens long"):
        reader.ask(QUESTION, ["b" * 97])


def test_rows_that_are_too_long_with_question_and_answer(reader):
    with pytest.raises(
        ValueError, match=r"contexts\[2\] .*'who sat\?'.* 70 new ones.*makes 103"
    ) as told:
        reader.ask(["who?", QUESTION], max_new_tokens=70)
    assert "ask for fewer new tokens" in str(told.value)


def test_max_length_is_the_users_word(model, tokenizer, make_model):
    with pytest.raises(ValueError, match="a row may have 20"):
        NBCE(model, tokenizer, max_length=20).encode(CONTEXTS)
    assert NBCE(model, tokenizer, max_length=200).encode(["b" * 120]).lengths == (120,)
    # A configuration that names no length sets no limit.
    assert NBCE(make_model("bloom").float(), tokenizer).encode(["b" * 120]).lengths == (120,)


@pytest.mark.parametrize("name", ["max_length", "rows_at_once"])
def test_counts(model, tokenizer, name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        NBCE(model, tokenizer, **{name: 0})
    with pytest.raises(TypeError, match=f"{name}: expected an integer or None, got 1.5"):
        NBCE(model, tokenizer, **{name: 1.5})


def test_a_tokenizer_without_padding(model, make_tokenizer):
    tokenizer = make_tokenizer(pad_token=None)
    model.generation_config.pad_token_id = None
    with pytest.raises(ValueError, match=r"set tokenizer.pad_token = tokenizer.eos_token"):
        NBCE(model, tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    assert NBCE(model, tokenizer).ask(QUESTION, CONTEXTS, max_new_tokens=3).text is not None
    model.generation_config.pad_token_id = 0
    assert NBCE(model, make_tokenizer(pad_token=None)).encode(CONTEXTS).reusable


def test_no_model(model, tokenizer):
    with pytest.raises(
        TypeError, match="expected a causal language model of transformers, got str"
    ):
        NBCE("a/model", tokenizer)
    with pytest.raises(TypeError, match="got LlamaModel"):
        NBCE(model.model, tokenizer)
    with pytest.raises(TypeError, match=r"merge: expected a ContextMerge, got .*call it"):
        NBCE(model, tokenizer, ContextMerge)
    with pytest.raises(TypeError, match="separator: expected a text, got NoneType"):
        NBCE(model, tokenizer, separator=None)


def test_an_encoder(tokenizer):
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=48
    )
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has an encoder"):
        NBCE(transformers.T5ForConditionalGeneration(config), tokenizer)


def test_contexts_of_another_model_or_under_other_rules(model, make_model, tokenizer):
    encoded = NBCE(model, tokenizer).encode(CONTEXTS)
    other = NBCE(make_model(), tokenizer)
    with pytest.raises(ValueError, match="read by another model than this LlamaForCausalLM"):
        other.ask(QUESTION, encoded)
    reader = NBCE(model, tokenizer)
    with plug(model, distance=ReRoPE(window=8)):
        with pytest.raises(ValueError, match=r"nothing plugged.*ReRoPE.*encode them again"):
            reader.ask(QUESTION, encoded)
        plugged = reader.encode(CONTEXTS)
    with pytest.raises(ValueError, match=r"ReRoPE.*plugged and the model now has nothing plugged"):
        reader.ask(QUESTION, plugged)
    with plug(model, distance=ReRoPE(window=9)), pytest.raises(ValueError, match="window=9"):
        reader.ask(QUESTION, plugged)
    with plug(model, distance=ReRoPE(window=8)):
        # The same rules plugged again are the same rules.
        assert len(reader.ask(QUESTION, plugged, max_new_tokens=2).tokens) <= 2
    assert len(reader.ask(QUESTION, encoded, max_new_tokens=2).tokens) <= 2


def test_contexts_of_the_model_in_another_dtype(model, tokenizer):
    reader = NBCE(model, tokenizer)
    reader.encode(CONTEXTS)
    model.float()
    with pytest.raises(ValueError, match=r"read in torch.float64 .* now in torch.float32"):
        reader.ask(QUESTION)


def test_names_are_numbered_by_default_and_errors_come_before_any_reading(
    model, tokenizer, monkeypatch
):
    passes = []
    forward = type(model).forward

    @functools.wraps(forward)
    def counted(*arguments: Any, **options: Any) -> Any:
        passes.append(1)
        return forward(*arguments, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    reader = NBCE(model, tokenizer)
    for bad in ({"max_new_tokens": 0}, {"typo": 1}, {"top_k": -2, "do_sample": True}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            reader.ask(QUESTION, CONTEXTS, **{"max_new_tokens": 9, **bad})
    assert not passes
    assert reader.encoded is None
    reader.ask(QUESTION, CONTEXTS, max_new_tokens=2, min_new_tokens=2)
    # The shared beginning, the contexts, and each token.
    assert len(passes) == 4
    assert reader.encoded.names == ("context 1", "context 2", "context 3")


def test_a_device_of_the_wrong_kind(model, tokenizer):
    with pytest.raises(TypeError, match=r'cache_device: expected "auto" or a device.*got 3.0'):
        NBCE(model, tokenizer, cache_device=3.0)


@pytest.mark.parametrize("name", ["graphics", "meta:7:7"])
def test_devices_that_do_not_exist(model, tokenizer, name):
    with pytest.raises(ValueError, match=f'cache_device: expected "auto" or a device.*{name}'):
        NBCE(model, tokenizer, cache_device=name)


def test_the_models_own_way_of_generating_is_refused_before_texts_are_read(reader):
    reader.model.generation_config.num_beams = 4
    with pytest.raises(ValueError, match="num_beams=4: expected 1"):
        reader.ask(QUESTION, ["a new context"])
    # What is asked for goes before what the model is configured to do.
    with pytest.raises(AssertionError, match="the model was run"):
        reader.ask(QUESTION, max_new_tokens=4, num_beams=1)


def test_wrapped_models_are_told_how_to_be_passed(model, tokenizer):
    class Wrapped(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            setattr(self, name, model)

    with pytest.raises(TypeError, match=r"pass what model.get_base_model\(\) returns"):
        NBCE(Wrapped("get_base_model"), tokenizer)
    with pytest.raises(TypeError, match=r"model._orig_mod"):
        NBCE(Wrapped("_orig_mod"), tokenizer)
