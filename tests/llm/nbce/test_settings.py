"""What is set elsewhere: modes and configurations stay, the model's own and a template count."""

import copy

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS

from ropewalk.llm import NBCE
from ropewalk.llm.nbce import encode

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
PREFIX = "read: "
QUESTIONS = ["who sat?", "how many birds flew?"]


def test_nothing_of_the_users_is_changed(model: PreTrainedModel, tokenizer, states):
    model.train()
    model.lm_head.eval()
    modes = [module.training for module in model.modules()]
    config, generation = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    tokenizer.padding_side = "right"
    random = torch.get_rng_state()
    reader = NBCE(model, tokenizer)
    options = {"max_new_tokens": 3, "stopping_criteria": [], "logits_processor": []}
    reader.ask(QUESTIONS, CONTEXTS, **options)
    assert [module.training for module in model.modules()] == modes
    assert model.config.to_dict() == config.to_dict()
    assert model.generation_config.to_dict() == generation.to_dict()
    assert tokenizer.padding_side == "right"
    assert options["stopping_criteria"] == options["logits_processor"] == []
    assert torch.equal(torch.get_rng_state(), random)
    assert all(not part.requires_grad for part in states(reader.encoded))


def test_a_model_in_training_is_read_without_dropout(make_model, tokenizer):
    model = make_model(attention_dropout=0.5).train()
    first, second = (
        NBCE(model, tokenizer).ask(QUESTIONS, CONTEXTS, max_new_tokens=4) for _ in "ab"
    )
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.trace.entropies, other.trace.entropies)


def test_the_modes_come_back_after_an_error(model, tokenizer, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    model.train()
    monkeypatch.setattr(encode, "_forward", broken)
    with pytest.raises(RuntimeError):
        NBCE(model, tokenizer).encode(CONTEXTS)
    assert all(module.training for module in model.modules())


CHAT = (
    "<s>{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_a_chat_template_stands_around_context_and_question(model, tokenizer):
    tokenizer.chat_template = CHAT
    reader = NBCE(model, tokenizer, separator="\n")
    encoded = reader.encode(CONTEXTS, prefix=PREFIX, chat=True)
    chatted = reader.ask(QUESTIONS, max_new_tokens=6)
    tokenizer.chat_template = None
    assert tokenizer.decode(encoded.base) == "<s>user: " + PREFIX
    assert tokenizer.decode(encoded.ending) == "\nassistant: "
    # The same, written out; the tokenizer puts <s> first itself.
    reader.encode(CONTEXTS, prefix="user: " + PREFIX)
    for question, answer in zip(QUESTIONS, chatted, strict=True):
        plain = reader.ask(question + "\nassistant: ", max_new_tokens=6)
        assert answer.tokens == plain.tokens
        assert answer.question == question


def test_templates_that_cannot_be_used(model, tokenizer):
    reader = NBCE(model, tokenizer)
    with pytest.raises(ValueError, match="expected a tokenizer with a chat template"):
        reader.encode(CONTEXTS, chat=True)
    tokenizer.chat_template = "{{ messages[0].content }}{{ messages[0].content }}"
    with pytest.raises(ValueError, match="shows them 2 times"):
        reader.encode(CONTEXTS, chat=True)


def test_the_models_own_settings_of_generation_count(reader, model):
    expected = reader.ask(QUESTIONS, max_new_tokens=8)
    model.generation_config.return_dict_in_generate = True
    model.generation_config.output_scores = True
    model.generation_config.stop_strings = [expected[0].text[3:5]]
    stopped = reader.ask(QUESTIONS, max_new_tokens=8)
    assert stopped[0].text == expected[0].text[: expected[0].text.index(expected[0].text[3:5])]
    given = transformers.GenerationConfig(repetition_penalty=4.0, pad_token_id=0)
    penalised = reader.ask(QUESTIONS[0], max_new_tokens=8, generation_config=given)
    model.generation_config.stop_strings = None
    assert (
        penalised.tokens
        == reader.ask(QUESTIONS[0], max_new_tokens=8, repetition_penalty=4.0).tokens
    )


def test_numbers_of_numpy_are_numbers(model, tokenizer):
    reader = NBCE(model, tokenizer, rows_at_once=np.int64(2), max_length=np.int64(90))
    answer = reader.ask(
        QUESTIONS[0], CONTEXTS, prior=np.array([1.0, 2.0, 3.0]), max_new_tokens=np.int64(3)
    )
    assert len(answer.tokens) == 3
    end = answer.tokens[0]
    for ends in (np.int64(end), [np.int64(end)], np.array([end]), torch.tensor(end), (end,)):
        stopped = reader.ask(
            QUESTIONS[0], prior=[1.0, 2.0, 3.0], max_new_tokens=3, eos_token_id=ends
        )
        assert stopped.tokens == [end]


@pytest.mark.parametrize("kind", [*ALL_CACHE_IMPLEMENTATIONS, "paged"])
@pytest.mark.parametrize("name", ["llama", "qwen3-next"])
def test_the_models_own_kind_of_cache_is_left_aside(make_model, tokenizer, name, kind):
    model = make_model(name).float()
    expected = NBCE(model, tokenizer).ask(QUESTIONS, CONTEXTS, max_new_tokens=4)
    model.generation_config.cache_implementation = kind
    model.generation_config.is_assistant = True
    before = copy.deepcopy(model.generation_config).to_dict()
    answers = NBCE(model, tokenizer).ask(QUESTIONS, CONTEXTS, max_new_tokens=4)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]
    assert model.generation_config.to_dict() == before
    model.generation_config.cache_implementation = None
    given = transformers.GenerationConfig(cache_implementation=kind, is_assistant=True)
    answers = NBCE(model, tokenizer).ask(
        QUESTIONS, CONTEXTS, max_new_tokens=4, generation_config=given
    )
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]
    assert given.cache_implementation == kind
