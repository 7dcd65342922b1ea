"""Stopping at a text, whatever tokens it is written in."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import StoppingCriteria


class StopAtText(StoppingCriteria):
    """Ends an answer once one of the texts is in it.

    transformers' own criterion would look at the end of the question too, and cannot be had through
    `generate(stop_strings=…)` together with a decoding function.

    Args:
        tokenizer: decodes the answer.
        texts: that end it.
        prompt: how many tokens come before the answer.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], prompt: int) -> None:
        self._tokenizer = tokenizer
        self._texts = list(texts)
        self._prompt = prompt

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Which rows are finished, bool (rows,)."""
        answers = (self._tokenizer.decode(row) for row in input_ids[:, self._prompt :].tolist())
        finished = [any(text in answer for text in self._texts) for answer in answers]
        return cast("torch.BoolTensor", torch.tensor(finished, device=input_ids.device))
