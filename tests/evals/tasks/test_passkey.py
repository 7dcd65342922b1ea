"""Pass key prompts: their length, where the key stands, and when the answer counts."""

import pytest
import torch
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

from ropewalk.evals.errors import InputError
from ropewalk.evals.tasks import passkey_prompt
from ropewalk.evals.tasks.passkey import Passkey

TOKENIZER = ByT5Tokenizer(extra_ids=0)
LONGEST_PIECE = max(map(len, passkey_prompt.FILLER_SENTENCES))


@pytest.mark.parametrize("length", [280, 320, 511, 512, 1000, 4096])
def test_prompts_fill_the_length_up_to_one_sentence(length):
    for sample in Passkey(TOKENIZER, trials=1).samples(length):
        assert length - LONGEST_PIECE < len(sample.tokens) <= length
        text = str(TOKENIZER.decode(sample.tokens))
        assert text.startswith(passkey_prompt.PREAMBLE)
        assert text.endswith(passkey_prompt.QUESTION + sample.about["answer"])
        assert passkey_prompt.needle(sample.about["answer"]) in text
        assert sample.scored == 5


def test_the_key_stands_at_its_depth():
    places = []
    for sample in Passkey(TOKENIZER, depths=(0.0, 0.5, 1.0), trials=1).samples(2048):
        text = str(TOKENIZER.decode(sample.tokens))
        start, end = len(passkey_prompt.PREAMBLE), text.index(passkey_prompt.QUESTION)
        needle = passkey_prompt.needle(sample.about["answer"])
        places.append((text.index(needle) - start) / (end - start - len(needle)))
    assert places == pytest.approx([0.0, 0.5, 1.0], abs=0.02)


def test_samples_are_seeded():
    def answers(seed):
        return [s.about["answer"] for s in Passkey(TOKENIZER, trials=3, seed=seed).samples(512)]

    assert answers(0) == answers(0)
    assert answers(0) != answers(1)
    assert len(set(answers(0))) == len(answers(0))
    keys = [sample.key for sample in Passkey(TOKENIZER, trials=3).samples(512)]
    assert len(set(keys)) == len(keys) == 15


def test_an_answer_counts_only_if_every_token_is_the_arg_max():
    task = Passkey(TOKENIZER, trials=1)
    sample = task.samples(320)[0]
    targets = torch.from_numpy(sample.tokens[-5:])
    logits = torch.nn.functional.one_hot(targets, 264).float()
    measured = task.measure(sample, logits)
    assert measured["correct"] is True
    assert measured["written"] == sample.about["answer"]
    logits[2, 263] = 2.0
    unknown = task.measure(sample, logits)
    assert unknown["written"] == sample.about["answer"][:2] + "\ufffd"
    logits[2, 263] = 0.0
    logits[3] = 0.0
    logits[3, ord("x") + 3] = 1.0
    measured = task.measure(sample, logits)
    assert measured["correct"] is False
    assert measured["written"] == sample.about["answer"][:3] + "x"


def test_a_digit_merged_with_its_space_belongs_to_the_answer(merging_tokenizer):
    for sample in Passkey(merging_tokenizer, trials=1).samples(400):
        assert sample.scored == 5
        assert merging_tokenizer.decode(sample.tokens[-5:]) == " " + sample.about["answer"]
        assert 400 - LONGEST_PIECE < len(sample.tokens) <= 400


def test_a_length_without_room_says_how_much_is_needed():
    with pytest.raises(InputError, match=r"lengths of at least 2[0-9]{2} tokens, got 100"):
        Passkey(TOKENIZER).samples(100)
