"""NBCE for plain greedy `generate`, as a logits processor.

    processor = ContextMergeLogitsProcessor(ContextMerge(), contexts=3)
    model.generate(**rows, do_sample=False, logits_processor=LogitsProcessorList([processor]))

It gives all rows of a question the merged scores, so that greedy decoding picks the same token in
each. Sampling would draw one token a row, and the rows would go apart: `MergedDecoding` draws one a
question, and is what to use for anything but greedy decoding.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from ropewalk.blocks.nbce import ContextMerge, MergeState
from ropewalk.llm.nbce.generation_checks import refuse_rows
from ropewalk.llm.nbce.validation import check_merge, weights_of


class ContextMergeLogitsProcessor(LogitsProcessor):
    """Merged scores for every row of a question; for greedy decoding only.

    Args:
        merge: how distributions are merged.
        contexts: how many each question has. Rows are question-major: of each question first the
            row without context, then one for every context, padded on the left.
        prior: weights of the contexts, (contexts,) or (questions, contexts).

    Raises:
        ValueError: no context, or weights of another shape, below 0 or all 0.
        TypeError: an argument of the wrong kind.
    """

    def __init__(
        self,
        merge: ContextMerge,
        *,
        contexts: int,
        prior: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
    ) -> None:
        check_merge(merge, contexts)
        self.merge = merge
        self.contexts = contexts
        self.prior = weights_of(prior, merge, contexts)
        self._state: MergeState | None = None
        self._start = self._expected = 0

    def __call__(
        self, input_ids: Int[Tensor, "rows sequence"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        """The merged log-probabilities, the same for all rows of a question.

        Raises:
            ValueError: rows that are no multiple of contexts + 1, or that have gone apart.
        """
        questions = refuse_rows(input_ids, self.contexts, self.prior)
        length = input_ids.shape[1]
        if self._state is None or length != self._expected or len(self._state.chosen) != questions:
            # A call that does not follow the last one begins another text.
            self._state, self._start = None, length
        self._expected = length + 1
        group = self.contexts + 1
        new = input_ids[:, self._start :].view(questions, group, -1)
        if not torch.equal(new, new[:, :1].expand_as(new)):
            raise ValueError(
                "the rows of a question have gone apart: expected the same new tokens in all of "
                "them, which only greedy decoding (do_sample=False, num_beams=1) gives; pass "
                "custom_generate=MergedDecoding(…) instead of this processor"
            )
        grouped = scores.view(questions, group, -1)
        prior = None if self.prior is None else self.prior.to(scores.device)
        log_probs, self._state = self.merge.merge(
            grouped[:, 1:], grouped[:, 0], self._state, prior=prior
        )
        return log_probs.to(scores.dtype).repeat_interleave(group, dim=0)
