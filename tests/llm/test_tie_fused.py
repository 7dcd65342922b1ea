"""Training without logits: `model(input_ids, labels=labels)` of tied models, step for step."""

import copy

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ropewalk.llm import tie, untie


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_the_stock_ones(architecture, make_model, tokens):
    stock = make_model(architecture, tie_word_embeddings=True).train()
    model = copy.deepcopy(stock)
    tie(model, fused_loss=True)
    labels = tokens.clone()
    labels[0, :5] = -100
    expected, got = stock(tokens, labels=labels), model(tokens, labels=labels)
    assert got.logits is None
    assert expected.logits is not None
    torch.testing.assert_close(got.loss, expected.loss)
    expected.loss.backward()
    got.loss.backward()
    torch.testing.assert_close(gradients(model), gradients(stock), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["cohere", "gemma2"])
def test_scaled_and_capped_logits(make_model, tokens, name):
    options = {"cohere": {"logit_scale": 0.3}, "gemma2": {"final_logit_softcapping": 0.7}}[name]
    stock = make_model(name, tie_word_embeddings=True, **options).train()
    model = copy.deepcopy(stock)
    tie(model, fused_loss=True)
    torch.testing.assert_close(model(tokens, labels=tokens).loss, stock(tokens, labels=tokens).loss)


@pytest.mark.parametrize("fused", [False, True], ids=["by hand", "fused"])
def test_a_llama_trains_step_for_step_like_the_stock_one(make_model, fused):
    """50 steps of AdamW, the same seed and data; the losses differ by at most 1e-4."""
    stock = make_model(tie_word_embeddings=True).train()
    model = copy.deepcopy(stock)
    embedding = tie(model, fused_loss=fused)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (stock, model)]
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(50):
        tokens = torch.randint(2, 48, (4, 16), generator=generator) // 3
        if fused:
            ours = model(tokens, labels=tokens).loss
        else:
            hidden = model.model(tokens).last_hidden_state
            ours = embedding.loss(hidden, tokens, shift=True)
        theirs = stock(tokens, labels=tokens).loss
        for loss, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append((float(theirs.detach()), float(ours.detach())))
    assert losses[-1][0] < losses[0][0] - 1
    assert max(abs(a - b) for a, b in losses) <= 1e-4


def test_arguments_of_the_stock_loss(make_model, tokens):
    stock = make_model(tie_word_embeddings=True).train()
    model = copy.deepcopy(stock)
    tie(model, fused_loss=True)
    labels = tokens.clone()
    labels[:, ::4] = 7
    shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    for options in (
        {"num_items_in_batch": 11},
        {"num_items_in_batch": torch.tensor(11)},
        {"ignore_index": 7},
        {"shift_labels": shifted.roll(1, 0)},
    ):
        got, expected = (m(tokens, labels=labels, **options).loss for m in (model, stock))
        torch.testing.assert_close(got, expected)
        assert not torch.equal(got, stock(tokens, labels=labels).loss)
    positional = model(tokens, None, None, None, None, labels)
    assert positional.logits is None
    loss, none = model(tokens, labels=labels, return_dict=False)[:2]
    torch.testing.assert_close(loss, positional.loss)
    assert none is None


def test_elsewhere_nothing_changes(make_model, tokens):
    stock = make_model(tie_word_embeddings=True)
    model = copy.deepcopy(stock)
    tie(model, fused_loss=True)
    expected = stock(tokens, labels=tokens)
    got = model(tokens, labels=tokens)  # in evaluation
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(got.loss, expected.loss)
    model.train()
    assert torch.equal(model(tokens).logits, expected.logits)  # without labels
    hidden = model.model(tokens).last_hidden_state
    assert torch.equal(model.lm_head(hidden), expected.logits)  # by hand
    assert torch.equal(
        model.generate(tokens, max_new_tokens=5, do_sample=False),
        stock.generate(tokens, max_new_tokens=5, do_sample=False),
    )


def test_a_call_that_failed_leaves_nothing_behind(make_model, tokens):
    model = make_model(tie_word_embeddings=True).train()
    tie(model, fused_loss=True)
    with pytest.raises(ValueError, match="targets: expected"):
        model(tokens, labels=tokens[:1])
    hidden = model.model(tokens).last_hidden_state
    assert model.lm_head(hidden).shape == (2, 21, 48)
    assert model(tokens, labels=tokens).logits is None


def test_copies_have_a_loss_of_their_own(make_model, tokens):
    model = make_model(tie_word_embeddings=True).train()
    embedding = tie(model, fused_loss=True)
    copied = copy.deepcopy(model)
    copied(tokens, labels=tokens).loss.backward()
    assert embedding.weight.grad is None
    assert copied.get_input_embeddings().weight.grad.any()
    untie(copied)
    assert copied(tokens, labels=tokens).logits is not None
    assert model(tokens, labels=tokens).logits is None


def test_it_can_be_added_to_a_tied_model(make_model, tokens):
    model = make_model("cohere", tie_word_embeddings=True, logit_scale=0.3).train()
    embedding = tie(model)
    expected = model(tokens, labels=tokens)
    assert tie(model, fused_loss=True) is embedding
    got = model(tokens, labels=tokens)
    assert (expected.logits is None, got.logits is None) == (False, True)
    torch.testing.assert_close(got.loss, expected.loss)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "step"])
def test_compiled_whole(make_model, tokens, what):
    stock = make_model(tie_word_embeddings=True).train()
    model = copy.deepcopy(stock)
    tie(model, fused_loss=True)

    def step(**inputs):
        return model(**inputs)

    call = torch.compile(model if what == "model" else step, fullgraph=True, backend="aot_eager")
    got = call(input_ids=tokens, labels=tokens)
    assert got.logits is None
    got.loss.backward()
    expected = stock(tokens, labels=tokens).loss
    expected.backward()
    torch.testing.assert_close(got.loss, expected)
    torch.testing.assert_close(gradients(model), gradients(stock), rtol=1e-4, atol=1e-6)
    assert call(input_ids=tokens).logits.shape == (2, 21, 48)


def test_half_precision(make_model, tokens):
    model = make_model(tie_word_embeddings=True).to(torch.bfloat16).train()
    stock = copy.deepcopy(model)
    tie(model, fused_loss=True)
    got, expected = (m(tokens, labels=tokens).loss for m in (model, stock))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_the_trainer_trains_alike(make_model, tokens, tmp_path):
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, number):
            return {"input_ids": tokens[number % 2], "labels": tokens[number % 2]}

    histories = []
    for fused in (False, True):
        model = make_model(tie_word_embeddings=True)
        if fused:
            tie(model, fused_loss=True)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(fused)), per_device_train_batch_size=2, max_steps=4,
            gradient_accumulation_steps=2, logging_steps=1, save_steps=4, report_to=[],
            use_cpu=True, disable_tqdm=True, eval_strategy="steps", eval_steps=4, seed=0,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=Data(), eval_dataset=Data())
        trainer.train()
        history = trainer.state.log_history
        histories.append([e[k] for e in history for k in ("loss", "eval_loss") if k in e])
    assert len(histories[0]) == 5
    assert histories[1] == pytest.approx(histories[0], abs=1e-4)
