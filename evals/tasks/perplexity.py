"""Loss against context length, always on the same tokens.

The last `score_tokens` tokens of each document are scored while the context in front of them grows:

    loss(n) = mean over documents and scored t of −ln p(x_t | the n − 1 or fewer tokens before it)

so a falling curve means that the model makes use of the longer context, and a rising one that it is
harmed by it; the text being scored is no part of the comparison. The protocol is that of Su
(kexue.fm/archives/9708, "the same last tokens") and of YaRN (arXiv 2309.00071, §4.3.1).
Bits per byte divides by the UTF-8 bytes of the scored text and so compares across tokenizers.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.evals.documents import TokenDocument
from ropewalk.evals.tasks.task import Sample

# Rows of logits turned to float32 at once; bounds the copy for large vocabularies.
ROWS_AT_ONCE = 256


class Perplexity:
    """Loss on the last tokens of documents.

    Args:
        documents: stretches of text, each as long as the longest length less the prefix.
        score_tokens: how many of the last tokens are scored; fewer than the shortest length.
        prefix: token ids that the model expects before any text.
    """

    name = "perplexity"

    def __init__(
        self, documents: Sequence[TokenDocument], *, score_tokens: int, prefix: Sequence[int] = ()
    ) -> None:
        self._documents = documents
        self._score_tokens = score_tokens
        self._prefix = np.array(prefix, dtype=np.int64)

    def settings(self) -> dict[str, Any]:
        """Number of scored tokens, and the documents by name and content."""
        return {
            "score_tokens": self._score_tokens,
            "documents": [
                {
                    "name": document.name,
                    "sha256": hashlib.sha256(document.tokens.astype("<i8").tobytes()).hexdigest(),
                }
                for document in self._documents
            ],
        }

    def samples(self, length: int) -> list[Sample]:
        """Each document's end: the prefix and as many tokens as make up `length`."""
        context = length - len(self._prefix)
        return [
            Sample(
                key=f"document {number}",
                tokens=np.concatenate([self._prefix, document.tokens[-context:]]),
                scored=self._score_tokens,
                about={
                    "document": document.name,
                    "bytes": document.bytes_of_last(self._score_tokens),
                },
            )
            for number, document in enumerate(self._documents)
        ]

    def measure(self, sample: Sample, logits: Float[Tensor, "scored vocabulary"]) -> dict[str, Any]:
        """Mean loss in nats per token; `None` if it is not finite."""
        targets = torch.from_numpy(sample.tokens[-sample.scored :]).to(logits.device)
        total = logits.new_zeros((), dtype=torch.float64)
        for rows, wanted in zip(
            logits.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True
        ):
            total += functional.cross_entropy(rows.float(), wanted, reduction="sum")
        nats = total.item() / sample.scored
        return {"nats": nats if np.isfinite(nats) else None, "tokens": sample.scored}
