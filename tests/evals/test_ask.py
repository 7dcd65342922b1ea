"""`ropewalk ask`: answers with their sources, on every kind of output, and what it refuses."""

import hashlib
import io
import json
import random
import string
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.text import Text

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.evals import cli
from ropewalk.evals.ask import answering
from ropewalk.evals.ask.answering import Answered, Asking
from ropewalk.evals.ask.contexts import read_contexts
from ropewalk.evals.ask.request import AskRequest
from ropewalk.evals.ask.show import show
from ropewalk.evals.ask.splitting import split_texts
from ropewalk.evals.ask.streaming import LiveAnswer, printable
from ropewalk.evals.environment import versions
from ropewalk.evals.errors import InputError
from ropewalk.evals.models import open_model
from ropewalk.llm import NBCE
from ropewalk.llm.nbce import Answer, Span, Trace


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Runs the command line in an empty folder; gives exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["ask", *arguments])
        return code, *capfd.readouterr()

    return run


def write_pairs(folder: Path, count: int, *, seed: int) -> list[dict[str, str]]:
    """Files of lines `key = value`, which the bundled model has learned to look up."""
    generator = random.Random(seed)

    def word(low: int, high: int) -> str:
        return "".join(
            generator.choices(
                string.ascii_lowercase + string.digits, k=generator.randint(low, high)
            )
        )

    folder.mkdir(exist_ok=True)
    files = [{word(3, 7): word(3, 8) for _ in range(12)} for _ in range(count)]
    for number, pairs in enumerate(files):
        lines = [f"{key} = {value}\n" for key, value in pairs.items()]
        (folder / f"{number}.txt").write_text("".join(lines))
    return files


def test_the_bundled_model_answers_from_the_right_file(command, tmp_path):
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


def test_one_question_about_named_files_is_one_line(command, tmp_path):
    files = write_pairs(tmp_path / "files", 3, seed=2)
    key, value = list(files[2].items())[5]
    contexts = [part for n in range(3) for part in ("--context", f"files/{n}.txt")]
    code, out, _ = command(*contexts, "--question", f"{key} = ", "--stop", r"\n")
    assert (code, out) == (0, f"[2.txt] {value}\n")


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_asked(command, monkeypatch):
    def fail(*_, **__):
        raise OSError("no such device")

    Path("a.txt").write_text("some text")
    monkeypatch.setattr(Path, "mkdir", fail)
    monkeypatch.setattr(answering, "Asking", None)  # is not reached
    code, _, error = command(
        "--context", "a.txt", "--question", "Who?", "--json", "far/away/a.json"
    )
    assert code == 2
    assert "--json: folder 'far/away' cannot be made: no such device" in error


def test_json_holds_what_the_library_says(command, tmp_path):
    files = write_pairs(tmp_path / "files", 3, seed=3)
    key, value = next(iter(files[1].items()))
    options = ("--context", "files", "--question", f"{key} = ", "--stop", r"\n")
    code, out, _ = command(*options, "--json", "-", "--prior", "1,2,1", "--beta", "0.5")
    assert code == 0
    content = json.loads(out)
    code, shown, _ = command(*options, "--prior", "1,2,1", "--beta", "0.5", "--json", "new/a.json")
    assert (code, shown) == (0, f"[1.txt] {value}\n")
    assert json.loads(Path("new/a.json").read_text()) == content
    assert content["model"] == "default"
    assert content["merge"] == {"beta": 0.5, "eta": 0.1, "top_p": 0.95, "pooling": "min_entropy"}
    texts = read_contexts([Path("files")]).texts
    assert content["contexts"] == [
        {
            "name": name,
            "tokens": len(text),
            "sha256": hashlib.sha256(Path("files", name).read_bytes()).hexdigest(),
        }
        for name, text in texts.items()
    ]
    asking = Asking(AskRequest([Path("files")], [f"{key} = "]))
    model = asking._source.load(dtype=torch.float32, device=torch.device("cpu"))
    reader = NBCE(model, asking.tokenizer, ContextMerge(beta=0.5))
    answer = reader.ask(f"{key} = ", texts, prior=[1, 2, 1], stop="\n")
    (written,) = content["answers"]
    assert written["text"] == answer.text == value
    assert written["spans"] == [{"text": value, "context": 1, "name": "1.txt"}]
    assert written["tokens"] == answer.tokens
    assert written["chosen"] == answer.trace.chosen.tolist()
    torch.testing.assert_close(torch.tensor(written["entropies"]), answer.trace.entropies)


def test_json_holds_all_that_decided_the_answers(command, tmp_path):
    write_pairs(tmp_path / "files", 2, seed=12)
    options = ("--context", "files", "--question", "def ", "--json", "-", "--max-new-tokens", "3")
    code, out, _ = command(*options, "--device", "cpu")
    assert code == 0
    content = json.loads(out)
    assert content.pop("versions") == versions()
    assert content.pop("fingerprint") == open_model("default").fingerprint
    for name in ("merge", "contexts", "answers"):
        del content[name]
    defaults = {
        "model": "default",
        "variant": {},
        "max_length": 512,
        "dtype": "float32",
        "device": "cpu",
        "prefix": "",
        "separator": "\n\n",
        "chat": False,
        "split": False,
        "stop": [],
        "max_new_tokens": 3,
        "sample": False,
        "temperature": None,
        "seed": None,
        "prior": None,
    }
    assert content == defaults
    given = ("--prefix", "Look:", "--separator", r"\n", "--stop", "x", "--stop", r"\n", "--sample")
    given += ("--seed", "3", "--prior", "1,2", "--variant", "log-n", "--dtype", "bfloat16")
    code, out, _ = command(*options, *given, "--device", "cpu", "--max-length", "600")
    assert code == 0
    changed = {
        "variant": {"log_n": {"name": "log-n", "length": 512, "clamp": True}},
        "max_length": 600,
        "dtype": "bfloat16",
        "prefix": "Look:",
        "separator": "\n",
        "stop": ["x", "\n"],
        "sample": True,
        "temperature": 1.0,
        "seed": 3,
        "prior": [1.0, 2.0],
    }
    content = json.loads(out)
    assert {name: content[name] for name in defaults} == defaults | changed


def test_a_chat_template_stands_around_everything(command, tmp_path, monkeypatch):
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


def test_sampling_is_seeded(command, tmp_path):
    write_pairs(tmp_path / "files", 2, seed=4)
    options = ("--context", "files", "--question", "def ", "--sample", "--temperature", "3")
    first = command(*options, "--seed", "5")
    assert first[0] == 0
    assert command(*options, "--seed", "5")[1] == first[1]
    assert command(*options, "--seed", "6")[1] != first[1]


def test_a_variant_reads_contexts_that_are_longer_than_trained(command, tmp_path):
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--context", "a.txt"), 'no question; add --question "…"'),
        (("--question", "?"), "no context; add --context FILE"),
        (("--context", "a.txt", "--question", "\udcff"), r"--question '\udcff' is not UTF-8"),
        (("--context", "a.txt", "--question", " "), "question ' ' is empty"),
        (("--context", "none.txt", "--question", "?"), "context 'none.txt' does not exist"),
        (("--context", "empty.txt", "--question", "?"), "context 'empty.txt' is empty"),
        (("--context", "binary", "--question", "?"), "context 'binary' is not UTF-8 text"),
        (("--context", "void", "--question", "?"), "context folder 'void' has no text in it"),
        (("--context", "a.txt", "--context", "a.txt", "--question", "?"), "is given twice"),
    ],
)
def test_contexts_and_questions_that_are_missing(command, tmp_path, arguments, expected):
    check_refusal(command, tmp_path, arguments, expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("--pooling", "min-entropy"),
            "unknown pooling 'min-entropy'; did you mean 'min_entropy'?",
        ),
        (("--beta", "-2"), "--beta: expected"),
        (("--eta", "-1"), "--eta: expected"),
        (("--top-p", "0"), "--top-p: expected"),
        (("--top-p", "nan"), "--top-p: expected"),
        (
            ("--prior", "1,2"),
            "--prior must have a weight for each of the 1 contexts (a.txt), got 2",
        ),
        (("--prior", "-1"), "--prior must be at least 0, got -1"),
        (("--prior", "0"), "--prior must have at least one weight above 0"),
        (("--prior", "x"), "--prior expects numbers separated by commas"),
        (("--max-new-tokens", "0"), "--max-new-tokens must be at least 1"),
        (("--max-length", "0"), "--max-length must be at least 1"),
        (("--temperature", "2"), "--temperature is only read with --sample"),
        (("--seed", "2"), "--seed is only read with --sample"),
        (("--sample", "--temperature", "0"), "--temperature must be above 0"),
        (("--stop", ""), "--stop must not be empty"),
        (("--json", "void"), "--json 'void' is a folder; name a file"),
        (("--json", "a.txt/x.json"), "is not a folder"),
        (("--variant", "rerop"), "unknown variant 'rerop'; did you mean 'rerope'?"),
        (("--variant", "rope@default"), "ask takes one model"),
        (("--variant", "ntk-aware:factor=0"), "factor"),
        (("--model", "./nowhere"), "model './nowhere' is no folder"),
        (("--dtype", "float8"), "unknown dtype 'float8'"),
        (("--device", "warp"), "device 'warp' cannot be used"),
        (("--max-new-tokens", "many"), "--max-new-tokens"),
        (("--threads", "0"), "--threads"),
    ],
)
def test_bad_options_end_in_one_line_with_code_2(command, tmp_path, arguments, expected):
    given = ("--context", "a.txt", "--question", "?", *arguments)
    check_refusal(command, tmp_path, given, expected)


def check_refusal(command, tmp_path, arguments, expected):
    (tmp_path / "a.txt").write_text("a = b\n")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xff")
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "blank").write_text("")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code, out, error = command(*arguments)
    assert (code, out) == (2, "")
    assert error.startswith("ropewalk: error: ")
    assert expected in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_long_files_are_split_when_asked_for(command, tmp_path):
    files = write_pairs(tmp_path / "files", 2, seed=14)
    others = write_pairs(tmp_path / "others", 6, seed=15)
    long = [*others[:3], files[0], *others[3:]]
    text = "".join(f"{key} = {value}\n" for pairs in long for key, value in pairs.items())
    (tmp_path / "files" / "0.txt").write_text(text)
    key, value = list(files[0].items())[5]
    options = ("--context", "files", "--question", f"{key} = ", "--stop", r"\n")
    code, _, error = command(*options)
    assert code == 2
    assert "split it with --split" in error
    code, out, _ = command(*options, "--split", "--prior", "2,1", "--json", "-")
    assert code == 0
    content = json.loads(out)
    first, *_, last = contexts = content["contexts"]
    parts = len(contexts) - 1
    assert [context["name"] for context in contexts] == [
        *(f"0.txt [{number}/{parts}]" for number in range(1, parts + 1)),
        "1.txt",
    ]
    assert parts > 1
    assert sum(context["tokens"] for context in contexts[:-1]) == len(text)
    room = 512 - len(f"\n\n{key} = ") - 64
    assert all(context["tokens"] <= room for context in contexts)
    assert first["sha256"] == contexts[1]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert last["sha256"] != first["sha256"]
    (answer,) = content["answers"]
    assert answer["text"] == value
    assert {span["name"] for span in answer["spans"]} < {context["name"] for context in contexts}
    code, out, _ = command(*options, "--split", "--prior", "0,1", "--json", "-")
    assert {span["context"] for span in json.loads(out)["answers"][0]["spans"]} == {parts}
    code, _, error = command(*options, "--split", "--max-new-tokens", "600")
    assert code == 2
    assert "--split: prefix, separator, question and --max-new-tokens leave no room" in error


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one\ntwo\nthree\n", ["one\ntwo\n", "three\n"]),
        ("one two three four", ["one two ", "three ", "four"]),
        ("abcdefghijklm", ["abcdefgh", "ijklm"]),
        ("éééééé", ["éééé", "éé"]),
        ("a\n" + "b" * 9, ["a\n", "b" * 8, "b"]),
        ("short", ["short"]),
        ("one\ntwo\n\n\n\n\n\n\n\n\n\n", ["one\ntwo\n"]),
    ],
)
def test_parts_end_at_lines_then_at_spaces(text, parts):
    split = split_texts({"t": text, "u": "x"}, 8, lambda part: len(part.encode()))
    assert [part for name, part in split.values() if name == "t"] == parts
    several = [f"t [{number}/{len(parts)}]" for number in range(1, len(parts) + 1)]
    assert list(split) == [*(several if len(parts) > 1 else ["t"]), "u"]


def test_parts_called_like_another_context_are_refused():
    texts = {"t": "one two three", "t [1/2]": "x"}
    with pytest.raises(InputError, match=r"both called 't \[1/2\]'"):
        split_texts(texts, 8, len)


def test_a_context_that_is_too_long_is_named(command, tmp_path):
    (tmp_path / "short.txt").write_text("a = b\n")
    (tmp_path / "long.txt").write_text("a = b\n" * 100)
    contexts = ("--context", "short.txt", "--context", "long.txt")
    code, out, error = command(*contexts, "--question", "a = ")
    assert (code, out) == (2, "")
    assert "'long.txt') is 600 tokens long" in error
    assert "--max-length" in error
    assert error.count("\n") == 1


def test_memory_that_runs_out_is_said(command, tmp_path, monkeypatch):
    def full(self, contexts, prefix="", names=None, *, chat=False):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(NBCE, "encode", full)
    (tmp_path / "a.txt").write_text("a = b\n")
    code, out, error = command("--context", "a.txt", "--question", "a = ")
    assert (code, out) == (1, "")
    assert "out of memory; give fewer or shorter contexts" in error


def test_files_of_a_folder_that_are_left_out_are_said(command, tmp_path):
    files = write_pairs(tmp_path / "files", 2, seed=10)
    (tmp_path / "files" / "binary").write_bytes(b"\xff\xfe\x00\xff")
    (tmp_path / "files" / "blank").write_text(" \n")
    (tmp_path / "files" / ".hidden").write_text("text")
    (tmp_path / "files" / "far").symlink_to(tmp_path)
    (tmp_path / "files" / "gone").symlink_to("nowhere")
    key, value = next(iter(files[1].items()))
    options = ("--context", "files", "--question", f"{key} = ", "--stop", r"\n")
    code, out, error = command(*options)
    assert (code, out) == (0, f"[1.txt] {value}\n")
    expected = [
        "ropewalk: skipped 'files/.hidden': hidden",
        "ropewalk: skipped 'files/binary': not UTF-8 text",
        "ropewalk: skipped 'files/blank': empty",
        "ropewalk: skipped 'files/far': a link to a folder",
        "ropewalk: skipped 'files/gone': no file",
    ]
    assert error.splitlines() == expected
    for number in range(6):
        (tmp_path / "files" / f"{number}.blank").write_text("")
    code, _, error = command(*options)
    assert code == 0
    (line,) = error.splitlines()
    assert line.startswith("ropewalk: skipped 11 files: 7 empty, ")
    assert "1 not UTF-8 text" in line


def test_line_breaks_are_understood_in_question_and_prefix(command, tmp_path):
    write_pairs(tmp_path / "files", 1, seed=11)
    options = ("--context", "files", "--max-new-tokens", "2", "--json", "-")
    code, out, _ = command(*options, "--question", r"one\n\ttwo", "--prefix", r"first\n")
    assert code == 0
    assert json.loads(out)["answers"][0]["question"] == "one\n\ttwo"
    spelled = command(*options, "--question", "one\n\ttwo", "--prefix", "first\n")
    assert spelled[1] == out


def test_names_are_those_of_files_unless_two_are_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("one/a.txt", "one/deep/b.txt", "two/a.txt", "one/.hidden", "one/blank"):
        path = Path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if path.name == "blank" else f"\ufefftext of {place}")
    assert list(read_contexts([Path("one/a.txt")]).texts) == ["a.txt"]
    assert read_contexts([Path("one")]).texts == {
        "a.txt": "text of one/a.txt",
        "deep/b.txt": "text of one/deep/b.txt",
    }
    both = read_contexts([Path("one"), Path("two/a.txt")])
    assert list(both.texts) == ["one/a.txt", "one/deep/b.txt", "two/a.txt"]
    with pytest.raises(InputError, match=r"context 'two/a\.txt' is given twice"):
        read_contexts([Path("two"), Path("two/a.txt")])


def answered(spans, contexts=3):
    chosen = torch.tensor([context for text, context in spans for _ in text] or [0])
    names = tuple(f"n{context}" for context in range(contexts))
    entropies = torch.arange(float(contexts)).expand(len(chosen), contexts)
    answer = Answer(
        "why?",
        "".join(text for text, _ in spans),
        list(range(len(chosen))),
        Trace(chosen, entropies, names),
        [Span(text, context, names[context]) for text, context in spans],
    )
    return Answered([answer], dict.fromkeys(names, 7), {})


def shown(given, **console):
    file = io.StringIO()
    # What the environment says about colours must not decide what is tested.
    options = {"width": 80, "_environ": {}, **console}
    show(given, AskRequest([], []), Console(file=file, **options))
    return file.getvalue()


def test_a_terminal_gets_a_colour_for_each_context_and_a_legend():
    spans = [("one", 2), (" two", 0), (" three", 2)]
    text = shown(answered(spans), force_terminal=True, color_system="standard")
    assert "\x1b[35mone\x1b[0m\x1b[34m two\x1b[0m\x1b[35m three\x1b[0m" in text
    plain = Text.from_ansi(text).plain
    rows = [line.split() for line in plain.splitlines() if line.strip().startswith("n")]
    # Name, tokens, mean entropy, tokens given; who gave most comes first.
    assert rows == [["n2", "7", "2.00", "9"], ["n0", "7", "0.00", "4"], ["n1", "7", "1.00", "–"]]


def test_elsewhere_and_without_colours_sources_are_written():
    spans = [("one", 2), (" two", 0)]
    expected = "[n2] one\n[n0]  two\n"
    assert shown(answered(spans)) == expected
    colourless = shown(answered(spans), force_terminal=True, no_color=True)
    assert Text.from_ansi(colourless).plain.strip() == expected.strip()


def test_more_contexts_than_colours_and_rows():
    given = answered([(str(context), context) for context in range(9)], contexts=40)
    text = shown(given, force_terminal=True, color_system="standard")
    assert "\x1b[4;34m8\x1b[0m" in text
    assert "and 28 more" in text


def test_an_answer_without_text_says_so():
    assert shown(answered([])) == "(empty answer)\n"


def test_names_and_answers_of_any_characters(command, tmp_path):
    files = write_pairs(tmp_path / "files", 2, seed=8)
    odd = tmp_path / "files" / "odd\x1b[2J\n\udcff.txt"
    (tmp_path / "files" / "0.txt").rename(odd)
    key, value = next(iter(files[0].items()))
    options = ("--context", "files", "--question", f"{key} = ", "--stop", r"\n")
    code, out, _ = command(*options)
    assert (code, out) == (0, f"[odd\ufffd[2J\n\ufffd.txt] {value}\n")
    code, out, _ = command(*options, "--json", "-")
    assert code == 0
    assert json.loads(out)["answers"][0]["spans"][0]["name"] == "odd\x1b[2J\n?.txt"
    assert printable("60\u00a0km\u3000👩\u200d🔬") == "60\u00a0km\u3000👩\u200d🔬"


def test_a_model_without_a_padding_token_is_asked_all_the_same(command, tmp_path, monkeypatch):
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


def test_an_answer_cannot_command_the_terminal():
    given = answered([("a\x1b[2Jb\r\x07c\u202e", 0)])
    for options in ({}, {"force_terminal": True, "color_system": "standard"}):
        text = Text.from_ansi(shown(given, **options)).plain
        assert "a\ufffd[2Jb\ufffd\ufffdc\ufffd" in text
    assert printable("a\tb\nc\x00") == "a\tb\nc\ufffd"


def test_what_is_written_is_shown_while_it_is_and_gives_way():
    from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40)
    with LiveAnswer(ByT5Tokenizer(extra_ids=0), console) as live:
        live.put(torch.tensor([[3 + ord("q")]]))
        for character in "ok\x1b":
            live.put(torch.tensor([3 + ord(character)]))
        live.end()
    text = file.getvalue()
    assert "reading" in text
    assert "ok\ufffd" in text
    assert "q" not in text
    assert text.rstrip().endswith("\x1b[2K")


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
