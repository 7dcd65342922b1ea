"""transformers' logits processors, made for every row of a batch, at work on one row a question.

Questions of different lengths are one tensor, filled up on the left with their own first token.
That adds no token to a text, but it would add n-grams, so processors that look at these see each
question without what it was filled up with. The others count tokens from the width of the batch,
which has to stay what it was when `generate` made them.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

# NoBadWordsLogitsProcessor is a sequence bias.
_OF_NGRAMS = (NoRepeatNGramLogitsProcessor, SequenceBiasLogitsProcessor)


def for_questions(
    processors: LogitsProcessorList,
    group: int,
    prompts: Sequence[Sequence[int]] | None,
    width: int,
) -> LogitsProcessorList:
    """Processors with what concerns the questions' rows.

    Args:
        processors: as `generate` made them, for all rows.
        group: rows of a question.
        prompts: tokens of each question, None if they were not filled up.
        width: tokens that they were filled up to.
    """
    adapted = LogitsProcessorList()
    filled = None if prompts is None else [width - len(prompt) for prompt in prompts]
    for processor in processors:
        ignored = getattr(processor, "prompt_ignore_length", None)
        if isinstance(ignored, Tensor):
            # Padding, which the penalty on repetition leaves out; `prompts` have none.
            own: Any = copy.copy(processor)
            own.prompt_ignore_length = None if filled is not None else ignored[::group]
            processor = own
        if filled is not None and any(filled) and isinstance(processor, _OF_NGRAMS):
            processor = _WithoutFilling(processor, filled)
        adapted.append(processor)
    return adapted


class _WithoutFilling(LogitsProcessor):
    """Calls a processor for the questions of each length apart, on their own tokens.

    Args:
        processor: that takes no notice of how many tokens there are.
        filled: how many of each question's tokens it was filled up with.
    """

    def __init__(self, processor: LogitsProcessor, filled: Sequence[int]) -> None:
        self._processor: Any = processor
        self._filled = list(filled)

    def __call__(
        self,
        input_ids: Int[Tensor, "questions sequence"],
        scores: Float[Tensor, "questions vocabulary"],
    ) -> Float[Tensor, "questions vocabulary"]:
        """The processor's scores."""
        processed = torch.empty_like(scores)
        for start in sorted(set(self._filled)):
            rows = [row for row, filled in enumerate(self._filled) if filled == start]
            processed[rows] = self._processor(input_ids[rows, start:], scores[rows])
        return processed
