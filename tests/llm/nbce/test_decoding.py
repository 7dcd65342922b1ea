"""`generate(custom_generate=MergedDecoding(…))` on rows that were padded by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteria,
    StopStringCriteria,
    TextStreamer,
    set_seed,
)

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.llm import MergedDecoding
from ropewalk.llm.nbce import ContextMergeLogitsProcessor

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]
PREFIX = "read: "
QUESTIONS = ["who sat?", "how many birds flew?"]
PAD, END = 0, 2


@pytest.fixture
def rows(tokenizer) -> dict[str, torch.Tensor]:
    tokenizer.padding_side = "left"
    texts = [
        PREFIX + context + "\n" + question for question in QUESTIONS for context in ("", *CONTEXTS)
    ]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


@pytest.fixture
def decode(model, rows):
    """Generates from the rows, with a new decoding; returns both."""

    def run(decoding: MergedDecoding | None = None, **options: Any) -> tuple[Any, MergedDecoding]:
        decoding = decoding or MergedDecoding(ContextMerge(), contexts=3)
        options = {"max_new_tokens": 8, "do_sample": False, **options}
        return model.generate(**rows, custom_generate=decoding, **options), decoding

    return run


def test_rows_in_and_one_row_a_question_out(model, rows, decode, loop):
    tokens, decoding = decode()
    width = rows["input_ids"].shape[1]
    assert torch.equal(tokens[:, :width], rows["input_ids"][::4])
    assert decoding.chosen.shape == (2, tokens.shape[1] - width)
    for place, question in enumerate(QUESTIONS):
        told, steps = loop(model, question), int(decoding.lengths[place])
        assert tokens[place, width : width + steps].tolist() == told.tokens
        assert decoding.chosen[place, :steps].tolist() == told.sources
        np.testing.assert_allclose(
            decoding.entropies[place, :steps].numpy(), np.stack(told.entropies), atol=1e-5
        )


@pytest.mark.parametrize(
    "options",
    [{"use_cache": False}, {"cache_implementation": "static"}, {"cache_implementation": "dynamic"}],
    ids=["none", "static", "dynamic"],
)
def test_every_cache(decode, options):
    expected, _ = decode()
    got, _ = decode(disable_compile=True, **options)
    assert torch.equal(got, expected)


def test_what_is_in_the_cache_already_may_be_given_again_or_not(model, rows, decode):
    from transformers import DynamicCache

    expected, _ = decode()
    for whole in (True, False):
        cache = DynamicCache()
        positions = (rows["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            model(
                rows["input_ids"][:, :-4],
                attention_mask=rows["attention_mask"][:, :-4],
                position_ids=positions[:, :-4],
                past_key_values=cache,
            )
        got = model.generate(
            rows["input_ids"] if whole else rows["input_ids"][:, -4:],
            attention_mask=rows["attention_mask"],
            position_ids=positions if whole else positions[:, -4:],
            past_key_values=cache,
            custom_generate=MergedDecoding(ContextMerge(), contexts=3),
            max_new_tokens=8,
            do_sample=False,
        )
        assert torch.equal(got[:, -8:], expected[:, -8:])


def test_scores_come_back_for_each_question(decode):
    output, decoding = decode(
        return_dict_in_generate=True, output_scores=True, output_logits=True, temperature=2.0,
        do_sample=True,
    )  # fmt: skip
    steps = decoding.chosen.shape[1]
    assert len(output.scores) == len(output.logits) == steps
    for scores, merged in zip(output.scores, output.logits, strict=True):
        assert scores.shape == merged.shape == (2, 48)
        assert torch.allclose(merged.exp().sum(-1), torch.ones(2, dtype=merged.dtype))
    assert output.past_key_values.get_seq_length() > 0
    plain, _ = decode(return_dict_in_generate=True)
    assert plain.scores is plain.logits is None


def test_finished_questions_are_padded(decode, recorder):
    class FirstStops(StoppingCriteria):
        def __call__(self, input_ids, scores, **_):
            assert input_ids.shape[0] == 2
            return torch.tensor([input_ids.shape[1] >= width + 3, False])

    full, _ = decode(min_new_tokens=8)
    width = full.shape[1] - 8
    tokens, decoding = decode(min_new_tokens=8, stopping_criteria=[FirstStops()])
    assert decoding.lengths.tolist() == [3, 8]
    assert tokens[0, width:].tolist() == [*full[0, width : width + 3].tolist(), *[PAD] * 5]
    assert tokens[1].tolist() == full[1].tolist()


def test_an_end_of_text_token_ends_a_question(decode):
    full, _ = decode(min_new_tokens=8)
    width = full.shape[1] - 8
    end = int(full[0, width + 2])
    first = full[0, width:].tolist().index(end)
    tokens, decoding = decode(eos_token_id=[END, end])
    assert decoding.lengths[0] == first + 1
    assert set(tokens[0, width + first + 1 :].tolist()) <= {PAD}
    without_pad, _ = decode(eos_token_id=end, pad_token_id=None)
    assert without_pad.shape[1] <= width + 8


def test_time_and_length_and_texts_end_generation(decode, tokenizer, rows):
    width = rows["input_ids"].shape[1]
    assert decode(stopping_criteria=[MaxTimeCriteria(0.0)])[0].shape[1] == width + 1
    assert decode(max_time=0.0)[0].shape[1] == width + 1
    assert decode(max_new_tokens=None, max_length=width + 5)[0].shape[1] == width + 5
    tokens, _ = decode(min_new_tokens=8)
    text = tokenizer.decode(tokens[1, width + 3])
    stop = StopStringCriteria(tokenizer, [text])
    _, decoding = decode(stopping_criteria=[stop])
    assert decoding.lengths[1] <= 4


def test_warpers_see_one_row_a_question(decode, recorder):
    set_seed(1)
    options = {"do_sample": True, "top_k": 3, "temperature": 0.7, "top_p": 0.9}
    tokens, _ = decode(logits_processor=LogitsProcessorList([recorder]), **options)
    assert all(scores.shape == (2, 48) for scores in recorder.scores)
    assert [seen.shape[1] for seen in recorder.seen] == list(
        range(tokens.shape[1] - len(recorder.seen), tokens.shape[1])
    )
    set_seed(1)
    assert torch.equal(decode(**options)[0], tokens)


def test_padding_counts_as_no_repetition(model, rows, tokenizer):
    # A question alone has less padding, or none, and must be answered the same.
    options = {"max_new_tokens": 8, "do_sample": False, "repetition_penalty": 2.5}
    for place in range(2):
        part = {name: tensor[4 * place : 4 * place + 4] for name, tensor in rows.items()}
        first = int(part["attention_mask"].argmax(-1).min())
        answers = []
        for batch, row in (({n: t[:, first:] for n, t in part.items()}, 0), (rows, place)):
            decoding = MergedDecoding(ContextMerge(), contexts=3)
            tokens = model.generate(**batch, custom_generate=decoding, **options)
            start = batch["input_ids"].shape[1]
            answers.append(tokens[row, start : start + int(decoding.lengths[row])].tolist())
        assert answers[0] == answers[1]


def test_the_streamer_gets_the_prompt_and_every_token(decode, model, rows, tokenizer):
    class Listener:
        def __init__(self) -> None:
            self.heard: list[list[int]] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.heard.append(value.tolist())

        def end(self) -> None:
            self.ended = True

    listener = Listener()
    decoding = MergedDecoding(ContextMerge(), contexts=3, streamer=listener)
    tokens, _ = decode(decoding, min_new_tokens=8)
    assert listener.heard[0] == rows["input_ids"][::4].tolist()
    assert torch.tensor(listener.heard[1:]).T.tolist() == tokens[:, -8:].tolist()
    assert listener.ended


def test_transformers_own_streamer_prints_the_answer(model, rows, tokenizer, capsys):
    one = {name: tensor[:4] for name, tensor in rows.items()}
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    decoding = MergedDecoding(ContextMerge(), contexts=3, streamer=streamer)
    tokens = model.generate(**one, custom_generate=decoding, max_new_tokens=8, do_sample=False)
    answer = tokenizer.decode(tokens[0, one["input_ids"].shape[1] :], skip_special_tokens=True)
    assert capsys.readouterr().out == answer + "\n"


def test_a_decoding_can_be_used_again(decode):
    decoding = MergedDecoding(ContextMerge(), contexts=3)
    first, _ = decode(decoding)
    chosen = decoding.chosen
    second, _ = decode(decoding)
    assert torch.equal(first, second)
    assert torch.equal(decoding.chosen, chosen)


def test_greedy_generation_with_a_logits_processor(model, rows, decode):
    expected, _ = decode()
    processor = ContextMergeLogitsProcessor(ContextMerge(), contexts=3)
    for _ in range(2):
        tokens = model.generate(
            **rows,
            logits_processor=LogitsProcessorList([processor]),
            max_new_tokens=8,
            do_sample=False,
        )
        assert torch.equal(tokens[::4], expected)
        for row in range(8):
            assert torch.equal(tokens[row, -4:], tokens[row - row % 4, -4:])


def test_a_logits_processor_takes_weights(model, rows, decode):
    weighed, _ = decode(MergedDecoding(ContextMerge(), contexts=3, prior=[0, 0, 1.0]))
    processor = ContextMergeLogitsProcessor(ContextMerge(), contexts=3, prior=[0, 0, 1.0])
    tokens = model.generate(
        **rows, logits_processor=LogitsProcessorList([processor]), max_new_tokens=8, do_sample=False
    )
    assert torch.equal(tokens[::4], weighed)
    assert not torch.equal(weighed, decode()[0])


def test_rows_that_sampling_drives_apart_are_noticed(model, rows):
    set_seed(0)
    processor = ContextMergeLogitsProcessor(ContextMerge(), contexts=3)
    with pytest.raises(ValueError, match=r"have gone apart.*MergedDecoding"):
        model.generate(
            **rows,
            logits_processor=LogitsProcessorList([processor]),
            max_new_tokens=8,
            do_sample=True,
        )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 2}, "num_beams=2: expected 1"),
    ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2: expected 1"),
    ({"prompt_lookup_num_tokens": 2}, "assisted"),
    ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
    ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
    ({"guidance_scale": 1.5}, "classifier_free_guidance"),
    ({"encoder_no_repeat_ngram_size": 2}, "about encoders"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_what_cannot_be_merged_is_refused_before_the_model_runs(
    model, decode, monkeypatch, options, message
):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(model), "forward", never)
    with pytest.raises(ValueError, match=message):
        decode(**options)


def test_rows_that_do_not_fit_the_contexts_are_refused(decode):
    with pytest.raises(ValueError, match=r"multiple of 6 rows \(5 contexts.*got 8"):
        decode(MergedDecoding(ContextMerge(), contexts=5))
    with pytest.raises(ValueError, match="weights for 2 questions, got 3"):
        decode(MergedDecoding(ContextMerge(), contexts=3, prior=torch.ones(3, 3)))
    processor = ContextMergeLogitsProcessor(ContextMerge(), contexts=5)
    with pytest.raises(ValueError, match="multiple of 6 rows"):
        processor(torch.zeros(8, 3, dtype=torch.int64), torch.zeros(8, 48))


def test_rows_that_are_padded_on_the_right_are_refused(model, tokenizer, monkeypatch):
    tokenizer.padding_side = "right"
    texts = ["who?", *(context + " who?" for context in CONTEXTS)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(model), "forward", never)
    with pytest.raises(ValueError, match=r'got 0 in 3 of 4 rows.* row 0; .*padding_side = "left"'):
        model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            custom_generate=MergedDecoding(ContextMerge(), contexts=3),
            max_new_tokens=3,
        )


@pytest.mark.parametrize("kind", [MergedDecoding, ContextMergeLogitsProcessor])
def test_bad_arguments(kind):
    with pytest.raises(TypeError, match=r"expected a ContextMerge, got .*call it"):
        kind(ContextMerge, contexts=3)
    with pytest.raises(TypeError, match="contexts: expected how many"):
        kind(ContextMerge(), contexts=["a"])
    with pytest.raises(ValueError, match="contexts: expected at least 1, got 0"):
        kind(ContextMerge(), contexts=0)
    with pytest.raises(ValueError, match=r"shape \(3,\).*got \(2,\)"):
        kind(ContextMerge(), contexts=3, prior=[1.0, 2.0])


def test_prompts_must_fit(decode):
    with pytest.raises(ValueError, match="prompts: expected one for each of 2, got 1"):
        decode(MergedDecoding(ContextMerge(), contexts=3, prompts=[[5]]))
    with pytest.raises(ValueError, match=r"prompts\[1\]: expected 1 to .* tokens.*got 0"):
        decode(MergedDecoding(ContextMerge(), contexts=3, prompts=[[5], []]))


def test_there_is_no_trace_before_the_first_call():
    with pytest.raises(ValueError, match="nothing has been generated yet"):
        _ = MergedDecoding(ContextMerge(), contexts=3).chosen


def test_a_model_that_computes_no_numbers_is_noticed(model, decode):
    decode()
    model.lm_head.weight.data[7] = float("nan")
    with pytest.raises(ValueError, match="NaN in 8 of 8 rows, the first of them row 0"):
        decode()
