"""How answers and their sources look, on a terminal and elsewhere."""

import io
import json

import torch
from rich.console import Console
from rich.text import Text

from ropewalk.evals.ask.answering import Answered
from ropewalk.evals.ask.request import AskRequest
from ropewalk.evals.ask.show import show
from ropewalk.evals.ask.streaming import printable
from ropewalk.llm.nbce import Answer, Span, Trace


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


def test_names_and_answers_of_any_characters(command, tmp_path, write_pairs):
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


def test_an_answer_cannot_command_the_terminal():
    given = answered([("a\x1b[2Jb\r\x07c\u202e", 0)])
    for options in ({}, {"force_terminal": True, "color_system": "standard"}):
        text = Text.from_ansi(shown(given, **options)).plain
        assert "a\ufffd[2Jb\ufffd\ufffdc\ufffd" in text
    assert printable("a\tb\nc\x00") == "a\tb\nc\ufffd"
