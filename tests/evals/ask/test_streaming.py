"""An answer that is shown while it is written."""

import io

import torch
from rich.console import Console

from ropewalk.evals.ask.streaming import LiveAnswer


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
