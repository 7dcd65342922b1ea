"""One pass key in many contexts: where it stands, and when each reader finds it."""

import pytest
import torch
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.evals.batches import Batches
from ropewalk.evals.errors import InputError
from ropewalk.evals.models import open_model
from ropewalk.evals.tasks import passkey_prompt
from ropewalk.evals.tasks.nbce import MERGES, NAIVE_BAYES, ManyContexts
from ropewalk.evals.tasks.task import Sample
from ropewalk.llm import NBCE

TOKENIZER = ByT5Tokenizer(extra_ids=0)
LONGEST_PIECE = max(map(len, passkey_prompt.FILLER_SENTENCES))


def task_of(**changes):
    return ManyContexts(TOKENIZER, **{"context_length": 384, "trials": 2, **changes})


def texts(sample):
    return [str(TOKENIZER.decode(context)) for context in sample.contexts]


@pytest.mark.parametrize(("count", "context_length"), [(1, 210), (2, 384), (5, 300), (16, 384)])
def test_one_of_the_contexts_states_the_key(count, context_length):
    for sample in task_of(context_length=context_length).samples(count * context_length):
        needle = passkey_prompt.needle(sample.about["answer"])
        contexts = texts(sample)
        assert len(contexts) == count == sample.about["contexts"]
        holding = [number for number, text in enumerate(contexts) if needle in text]
        assert holding == [sample.about["place"]]
        assert len(set(contexts)) == count
        for text in contexts:
            assert context_length - LONGEST_PIECE < len(text) <= context_length
            assert text.startswith(passkey_prompt.PREAMBLE)
        question = str(TOKENIZER.decode(sample.tokens))
        assert question == passkey_prompt.QUESTION + sample.about["answer"]
        assert sample.scored == 5


def test_contexts_without_the_key_are_equally_long_so_that_they_share_a_batch():
    sample = task_of().samples(8 * 384)[0]
    lengths = {len(text) for text in texts(sample) if "Remember" not in text}
    assert len(lengths) == 1


def test_places_and_depths_vary_and_everything_is_seeded():
    def about(seed):
        return [sample.about for sample in task_of(seed=seed, trials=6).samples(8 * 384)]

    assert about(0) == about(0)
    assert about(0) != about(1)
    assert {sample["place"] for sample in about(0)} == set(range(8))
    samples = task_of(depths=(0.0, 0.5, 1.0), trials=1).samples(2 * 384)
    places = []
    for sample in samples:
        text = texts(sample)[sample.about["place"]]
        needle = passkey_prompt.needle(sample.about["answer"])
        room = len(text) - len(passkey_prompt.PREAMBLE) - len(needle)
        places.append((text.index(needle) - len(passkey_prompt.PREAMBLE)) / room)
    assert places == pytest.approx(3 * [0.0] + 3 * [0.5] + 3 * [1.0], abs=0.06)
    keys = [sample.key for sample in task_of().samples(384)]
    assert len(set(keys)) == len(keys) == 5 * 2 * 3


def test_the_same_contexts_are_read_in_three_ways():
    apart, joined, windows = task_of().samples(4 * 384)[:3]
    assert [s.reading for s in (apart, joined, windows)] == ["apart", "joined", "windows"]
    assert len(joined.sequences()) == 1
    for sample in (apart, windows):
        question, *rest = sample.sequences()
        assert question.tolist() == sample.tokens.tolist()
        assert [len(sequence) for sequence in sample.sequences()] == sample.lengths()
        ends = [sequence[: -len(sample.tokens)] for sequence in rest]
        whole = [token for part in ends for token in part.tolist()] + sample.tokens.tolist()
        assert whole == joined.sequences()[0].tolist()
    assert joined.lengths() == [len(joined.sequences()[0])]


def test_what_the_model_expects_first_stands_once_in_every_sequence():
    prefix = torch.tensor([7, 8]).numpy()
    one, other, question = (torch.tensor(tokens).numpy() for tokens in ([1, 2], [3], [4, 5, 6]))
    expected = {
        "joined": [[7, 8, 1, 2, 3, 4, 5, 6]],
        "apart": [[7, 8, 4, 5, 6], [7, 8, 1, 2, 4, 5, 6], [7, 8, 3, 4, 5, 6]],
    }
    for reading, sequences in expected.items():
        sample = Sample("", question, 2, {}, (one, other), prefix, reading)
        assert [sequence.tolist() for sequence in sample.sequences()] == sequences
        assert sample.lengths() == [len(sequence) for sequence in sequences]


def test_a_tokenizer_that_begins_texts_and_merges_spaces(merging_tokenizer):
    from tokenizers.processors import TemplateProcessing

    first = merging_tokenizer.convert_tokens_to_ids("~")
    merging_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="~ $A", special_tokens=[("~", first)]
    )
    task = ManyContexts(merging_tokenizer, context_length=300, trials=1)
    for sample in task.samples(4 * 300):
        assert sample.prefix.tolist() == [first]
        assert sample.scored == 5
        answer = sample.about["answer"]
        assert merging_tokenizer.decode(sample.tokens[-5:]) == f" {answer}"
        for context in sample.contexts:
            assert first not in context
            assert 300 - LONGEST_PIECE < len(context) + 1 <= 300


def logits_of(sample, sure):
    """One context is surer of the answer than the others are of something else."""
    answer = torch.from_numpy(sample.tokens[-5:])
    rows = torch.nn.functional.one_hot(torch.full((5, 5), ord("x") + 3), 264).float() * 12.0
    rows[1 + sure] = torch.nn.functional.one_hot(answer, 264).float() * 20.0
    rows[0] = 0.0
    return rows


def test_a_reader_finds_the_key_exactly_when_its_greedy_decoding_writes_it():
    task = task_of()
    sample = task.samples(4 * 384)[0]
    answer = sample.about["answer"]
    logits = logits_of(sample, sure=2)
    measured = task.measure(sample, logits)
    assert measured["correct"].keys() == measured["written"].keys() == {*MERGES, NAIVE_BAYES}
    assert measured["correct"]["min_entropy"] is True
    assert measured["written"]["min_entropy"] == answer
    assert measured["chosen"] == [2] * 5
    # Three contexts against one: their mean says what most of them say.
    assert measured["correct"]["mean"] is False
    assert measured["written"]["mean"] == "x"
    logits[3, 2] = torch.nn.functional.one_hot(torch.tensor(263), 264).float() * 20.0
    unknown = task.measure(sample, logits)
    assert unknown["correct"]["min_entropy"] is False
    assert unknown["written"]["min_entropy"] == answer[:2] + "\ufffd"
    assert unknown["chosen"] == [2] * 3


def test_joined_and_in_windows_the_arg_max_decides():
    task = task_of()
    _, joined, windows = task.samples(4 * 384)[:3]
    for sample, reader in ((joined, "concatenation"), (windows, "parallel_windows")):
        logits = logits_of(sample, sure=0)
        assert task.measure(sample, logits[1]) == {
            "correct": {reader: True},
            "written": {reader: sample.about["answer"]},
        }
        assert task.measure(sample, logits[2])["correct"] == {reader: False}


def test_the_score_is_that_of_asking_the_library(tiny_model):
    """The answer is replaced by what NBCE writes, so that both outcomes occur."""
    source = open_model(str(tiny_model))
    model = source.load(dtype=torch.float32, device=torch.device("cpu"))
    model.resize_token_embeddings(259)  # the tokenizer decodes no others
    task = ManyContexts(source.tokenizer, context_length=220, trials=1)
    batches = Batches(dtype=torch.float32, device=torch.device("cpu"), most=None)
    found = 0
    for sample in task.samples(3 * 220):
        if sample.reading != "apart":
            continue
        for name in ("min_entropy", "mean"):
            reader = NBCE(model, TOKENIZER, MERGES[name], separator="", max_length=400)
            written = reader.ask(
                passkey_prompt.QUESTION, texts(sample), max_new_tokens=5, eos_token_id=None
            ).tokens
            for wrong in (False, True):
                tokens = sample.tokens.copy()
                tokens[-5:] = written
                if wrong:
                    tokens[-2] = (tokens[-2] + 1) % 259
                changed = Sample(
                    sample.key, tokens, 5, sample.about, sample.contexts, sample.prefix, "apart"
                )
                with torch.inference_mode():
                    (logits,) = batches.logits(model, [changed])
                assert task.measure(changed, logits)["correct"][name] is not wrong
                found += 1
    assert found == 5 * 2 * 2


def test_settings_say_how_nbce_merges():
    settings = task_of(contexts=(1, 3)).settings()
    merge = ContextMerge()
    assert settings["contexts"] == [1, 3]
    assert settings["merges"].keys() == MERGES.keys()
    assert settings["merges"]["max_beta_0"] == {
        "beta": 0.0,
        "eta": merge.eta,
        "top_p": merge.top_p,
        "pooling": "max",
        "renormalise_entropy": False,
    }


def test_a_context_without_room_says_how_much_is_needed():
    with pytest.raises(InputError, match=r"contexts of at least 206 tokens, got 205; give a"):
        task_of(context_length=205).samples(205)
    assert task_of(context_length=206).samples(206)


@pytest.mark.slow
def test_nbce_finds_the_key_in_sixteen_contexts_where_the_concatenation_fails():
    source = open_model("default")
    model = source.load(dtype=torch.float32, device=torch.device("cpu"))
    task = ManyContexts(source.tokenizer, context_length=384, trials=3)
    samples = task.samples(16 * 384)
    batches = Batches(dtype=torch.float32, device=torch.device("cpu"), most=None)
    apart = [sample for sample in samples if sample.reading == "apart"]
    joined = [sample for sample in samples if sample.reading == "joined"][::5]
    assert all(6000 < sample.lengths()[0] < 6144 + 50 for sample in joined)
    found = {}
    with torch.inference_mode():
        for some in (apart, joined):
            for batch in batches.of(model, some):
                for sample, logits in zip(batch, batches.logits(model, batch), strict=True):
                    for reader, correct in task.measure(sample, logits)["correct"].items():
                        found.setdefault(reader, []).append(correct)
    shares = {reader: sum(correct) / len(correct) for reader, correct in found.items()}
    assert len(found["min_entropy"]) == 15
    assert shares["min_entropy"] >= 0.9
    assert shares["concatenation"] == 0.0
    assert shares["max_beta_0"] >= 0.9
    assert shares["mean"] < 0.5
    assert shares["max"] < 0.5
