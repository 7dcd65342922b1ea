"""A bar appears for slow work on a terminal only, and reading contexts advances it."""

import sys
from typing import Any

import pytest
import torch

from ropewalk.llm import NBCE
from ropewalk.llm.device_memory import free_memory
from ropewalk.llm.nbce import encode, progress

CONTEXTS = ["the cat sat on a mat.", "a dog", "no, 42 birds flew away!"]


class Bar:
    """Stands in for rich's."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add_task(self, title: str, total: int) -> int:
        self.seen.append((title, total))
        return 7

    def start(self) -> None:
        self.seen.append("start")

    def update(self, task: int, completed: int) -> None:
        assert task == 7
        self.seen.append(completed)

    def stop(self) -> None:
        self.seen.append("stop")


@pytest.fixture
def bar(monkeypatch) -> Bar:
    made = Bar()
    monkeypatch.setattr(progress, "_bar", lambda: made)
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return made


def test_reading_contexts_is_shown(model, tokenizer, bar):
    NBCE(model, tokenizer, rows_at_once=1).encode(CONTEXTS)
    assert bar.seen == [("reading contexts", 49), "start", 23, 44, 49, "stop"]


def test_fast_work_is_not(model, tokenizer, bar, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 60.0)
    NBCE(model, tokenizer, rows_at_once=1).encode(CONTEXTS)
    assert bar.seen == []


def test_nothing_is_shown_where_nobody_looks(model, tokenizer, bar, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    NBCE(model, tokenizer, rows_at_once=1).encode(CONTEXTS)
    assert bar.seen == []


def test_an_error_takes_the_bar_away(model, tokenizer, bar, monkeypatch):
    waves = iter([None, RuntimeError("shapes do not match")])
    read = encode._read_wave

    def breaking(*arguments):
        error = next(waves)
        if error is not None:
            raise error
        return read(*arguments)

    monkeypatch.setattr(encode, "_read_wave", breaking)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        NBCE(model, tokenizer, rows_at_once=1).encode(CONTEXTS)
    assert bar.seen[-2:] == [23, "stop"]


def test_rich_and_psutil_are_not_needed(model, tokenizer, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for name in ("rich", "rich.console", "rich.progress", "psutil"):
        monkeypatch.setitem(sys.modules, name, None)
    assert NBCE(model, tokenizer, rows_at_once=1).encode(CONTEXTS).reusable
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
