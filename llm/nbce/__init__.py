"""NBCE around a model: many contexts are read apart, and one answer is merged from all of them.

* `reader`: `NBCE`, which encodes contexts and answers questions.
* `chat`: a chat template around contexts and question.
* `encode`, `encoded`: contexts read in waves, and what is kept of them.
* `asking`, `rows`, `cache`: the batch of some questions and its key-value cache.
* `decoding`, `steps`: `MergedDecoding`, the loop that `generate` runs, and its forward passes.
* `processors`: transformers' logits processors, on one row a question.
* `stopping`, `answer`: where an answer ends, its text, its sources and its trace.
* `logits_processor`: the same for plain greedy `generate`.
* `validation`, `generation_checks`, `limits`, `rehearsal`, `shared_rotation`, `padding_probe`: what
  is refused, and how to mend it.
* `memory`, `modes`, `progress`: how much fits, evaluation mode for a while, and a bar.
"""

from ropewalk.llm.nbce.answer import Answer, Span, Trace
from ropewalk.llm.nbce.decoding import MergedDecoding
from ropewalk.llm.nbce.encoded import EncodedContexts
from ropewalk.llm.nbce.logits_processor import ContextMergeLogitsProcessor
from ropewalk.llm.nbce.reader import NBCE

__all__ = [
    "NBCE",
    "Answer",
    "ContextMergeLogitsProcessor",
    "EncodedContexts",
    "MergedDecoding",
    "Span",
    "Trace",
]
