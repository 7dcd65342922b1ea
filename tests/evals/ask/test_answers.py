"""What is asked and how: files, folders, variants, models of every kind."""

import json
from pathlib import Path

import pytest
import torch

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.evals.ask import answering
from ropewalk.evals.ask.answering import Asking
from ropewalk.evals.ask.contexts import read_contexts
from ropewalk.evals.ask.request import AskRequest
from ropewalk.evals.models import open_model
from ropewalk.llm import NBCE


def test_the_bundled_model_answers_from_the_right_file(command, tmp_path, write_pairs):
    files = write_pairs(tmp_path / "files", 4, seed=1)
    asked = [(number, list(files[number])[number]) for number in range(4)]
    questions = [part for number, key in asked for part in ("--question", f"{key} = ")]
    code, out, _ = command("--context", "files", *questions, "--stop", r"\n")
    assert code == 0
    expected = [
        line
        for number, key in asked
        for line in (f"question: {key} = ", f"[{number}.txt] {files[number][key]}")
    ]
    assert out.splitlines() == expected


def test_one_question_about_named_files_is_one_line(command, tmp_path, write_pairs):
    files = write_pairs(tmp_path / "files", 3, seed=2)
    key, value = list(files[2].items())[5]
    contexts = [part for n in range(3) for part in ("--context", f"files/{n}.txt")]
    code, out, _ = command(*contexts, "--question", f"{key} = ", "--stop", r"\n")
    assert (code, out) == (0, f"[2.txt] {value}\n")


def test_a_chat_template_stands_around_everything(command, tmp_path, monkeypatch, write_pairs):
    files = write_pairs(tmp_path / "files", 2, seed=13)
    key = next(iter(files[1]))
    options = ("--context", "files", "--question", f"{key} = ", "--prefix", "Look:", "--json", "-")
    code, out, error = command(*options, "--chat")
    assert (code, out) == (2, "")
    assert error.startswith("ropewalk: error: --chat with model 'default': expected a tokenizer ")
    assert "leave --chat out" in error
    assert error.count("\n") == 1

    def with_template(template):
        def opened(name, **given):
            source = open_model(name, **given)
            source.tokenizer.chat_template = template
            return source

        monkeypatch.setattr(answering, "open_model", opened)

    with_template("{% for m in messages %}<u>{{ m.content }}</u>{% endfor %}<a>")
    code, out, _ = command(*options, "--chat")
    assert code == 0
    asking = Asking(AskRequest([Path("files")], ["?"]))
    model = asking._source.load(dtype=torch.float32, device=torch.device("cpu"))
    reader = NBCE(model, asking.tokenizer)
    reader.encode(read_contexts([Path("files")]).texts, "Look:", chat=True)
    content = json.loads(out)
    assert content["chat"] is True
    assert content["answers"][0]["tokens"] == reader.ask(f"{key} = ").tokens
    with_template("{{ raise_exception('only the system may speak') }}")
    code, _, error = command(*options, "--chat")
    assert code == 2
    assert "only the system may speak" in error
    assert error.count("\n") == 1


def test_sampling_is_seeded(command, tmp_path, write_pairs):
    write_pairs(tmp_path / "files", 2, seed=4)
    options = ("--context", "files", "--question", "def ", "--sample", "--temperature", "3")
    first = command(*options, "--seed", "5")
    assert first[0] == 0
    assert command(*options, "--seed", "5")[1] == first[1]
    assert command(*options, "--seed", "6")[1] != first[1]


def test_a_variant_reads_contexts_that_are_longer_than_trained(command, tmp_path, write_pairs):
    files = write_pairs(tmp_path / "files", 2, seed=7)
    # 12 pairs of about 15 bytes each, five times over.
    for path in (tmp_path / "files").iterdir():
        path.write_text(path.read_text() * 5)
    key, value = list(files[1].items())[3]
    options = ("--context", "files", "--question", f"{key} = ", "--stop", r"\n")
    code, out, error = command(*options)
    assert (code, out) == (2, "")
    assert "tokens long" in error
    assert "'0.txt'" in error
    assert "--variant rerope+log-n" in error
    assert "ropewalk.llm.plug" not in error
    code, out, _ = command(*options, "--variant", "rerope+log-n")
    assert (code, out) == (0, f"[1.txt] {value}\n")
    # A rule that a model was trained with does not make it read further than that.
    code, _, error = command(*options, "--model", "default-inverse-leaky")
    assert code == 2
    assert "--max-length" in error


def test_line_breaks_are_understood_in_question_and_prefix(command, tmp_path, write_pairs):
    write_pairs(tmp_path / "files", 1, seed=11)
    options = ("--context", "files", "--max-new-tokens", "2", "--json", "-")
    code, out, _ = command(*options, "--question", r"one\n\ttwo", "--prefix", r"first\n")
    assert code == 0
    assert json.loads(out)["answers"][0]["question"] == "one\n\ttwo"
    spelled = command(*options, "--question", "one\n\ttwo", "--prefix", "first\n")
    assert spelled[1] == out


def test_a_model_without_a_padding_token_is_asked_all_the_same(
    command, tmp_path, monkeypatch, write_pairs
):
    from ropewalk.evals.ask import answering

    def without_padding(name, **options):
        source = open_model(name, **options)
        source.tokenizer.pad_token = None
        return source

    monkeypatch.setattr(answering, "open_model", without_padding)
    files = write_pairs(tmp_path / "files", 3, seed=9)
    key, value = next(iter(files[2].items()))
    shorter = tmp_path / "files" / "0.txt"
    shorter.write_text("".join(shorter.read_text().splitlines(keepends=True)[:7]))
    code, out, _ = command("--context", "files", "--question", f"{key} = ", "--stop", r"\n")
    assert (code, out) == (0, f"[2.txt] {value}\n")


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_a_model_without_rope_is_asked_as_it_is(command, tmp_path, family):
    import transformers
    from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=264,
            n_embd=8,
            n_layer=1,
            n_head=1,
            n_positions=64,
            bos_token_id=None,
            eos_token_id=1,
        )
    else:  # names no length either
        config = transformers.MambaConfig(vocab_size=264, hidden_size=8, num_hidden_layers=1)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "model")
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path / "model")
    texts = {"a.txt": "the first text", "b.txt": "a second one"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    options = ("--context", "a.txt", "--context", "b.txt", "--question", "who?")
    options += ("--model", "./model", "--max-new-tokens", "4")
    code, out, _ = command(*options, "--json", "-")
    assert code == 0
    content = json.loads(out)
    expected = NBCE(model, ByT5Tokenizer(extra_ids=0)).ask("who?", texts, max_new_tokens=4)
    assert content["answers"][0]["tokens"] == expected.tokens
    assert content["variant"] == {}
    code, out, error = command(*options, "--variant", "rerope")
    assert (code, out) == (2, "")
    assert f"({family}) has no rotary position embedding (RoPE); variants can only be plugged" in (
        error
    )
    if family == "gpt2":
        (tmp_path / "a.txt").write_text("long " * 20)
        code, _, error = command(*options)
        assert code == 2
        assert "'a.txt') is 100 tokens long" in error


def test_options_have_the_librarys_defaults():
    import inspect

    from ropewalk.evals.ask.command import ask

    given = {name: option.default for name, option in inspect.signature(ask).parameters.items()}
    merge = ContextMerge()
    assert [given[name] for name in ("beta", "eta", "top_p", "pooling")] == [
        merge.beta,
        merge.eta,
        merge.top_p,
        merge.pooling,
    ]
