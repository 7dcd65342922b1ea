"""What `ropewalk ask` refuses, in one line and before anything is asked."""

from pathlib import Path

import pytest
import torch

from ropewalk.evals.ask import answering
from ropewalk.llm import NBCE


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
