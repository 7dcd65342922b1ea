"""The workload of the merge of contexts: one model output, peers' calls, the definition in float64.

Logits are those of a vocabulary head (`token_distributions`): `trained` as a model that knows its
language has them, `initial` as flat as noise. Of `trained`, each context suggests words of its own,
and the question some that all rows share, the one without context too: those are what is taken off.
The oracle sorts; rows are taken one by one.

A peer is judged by the merged probabilities and the entropies, ‖result − oracle‖ / ‖oracle‖ each,
and must have chosen the same contexts: probabilities, because a token whose mass above is top_p up
to rounding may be cut or not, and then weighs next to nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.attention import distance, worst
from benchmarks.case import Call, Check
from benchmarks.token_distributions import STRENGTH, SUGGESTED, Distribution, draw

HEAD_DIM = 256
"""Of the head that makes the logits."""
FREQUENT = 100
"""Columns from whom the words are drawn that a question suggests."""
BETA, ETA, TOP_P = 0.25, 0.1, 0.95
TOLERANCE = 1e-3
"""All peers compute in float32; one token at the edge in a flat row of 264 is 1e-4 of it."""


class Outcome(NamedTuple):
    """Log-probabilities (questions, vocabulary), chosen (questions,), entropies of all contexts."""

    log_probs: Tensor
    chosen: Tensor
    entropies: Tensor


Merge = Callable[[Tensor, Tensor], Outcome]
"""From logits (questions, 1 + contexts, vocabulary), without context first, and the contexts chosen
the step before."""


@dataclass(frozen=True)
class MergeShape:
    """Sizes of a problem.

    Attributes:
        distribution: what is drawn; see `token_distributions`.
    """

    questions: int
    contexts: int
    vocabulary: int
    dtype: torch.dtype
    device: str
    distribution: Distribution = "trained"

    @property
    def logit_bytes(self) -> int:
        """What the logits take."""
        rows = self.questions * (self.contexts + 1)
        return rows * self.vocabulary * self.dtype.itemsize

    @property
    def parameters(self) -> dict[str, Any]:
        """The sizes as a result records them."""
        return {**self.__dict__, "dtype": str(self.dtype).removeprefix("torch.")}


class MergeWorkload:
    """Inputs of one shape, and what each peer makes of them.

    Attributes:
        shape: the sizes.
        output: (questions, 1 + contexts, vocabulary), a model's logits, without context first.
        previous: (questions,), the contexts chosen a step before.
    """

    def __init__(self, shape: MergeShape) -> None:
        self.shape = s = shape
        generator = torch.Generator(device=s.device).manual_seed(0)
        rows = s.questions * (s.contexts + 1)
        drawn = draw(s.distribution, rows, HEAD_DIM, s.vocabulary, generator)
        logits = (drawn.hidden @ drawn.weight.T).view(s.questions, s.contexts + 1, s.vocabulary)
        if s.distribution == "trained":
            _suggest_words_to_all_rows(logits, generator)
        self.output = logits.to(s.dtype)
        self.previous = torch.randint(
            s.contexts, (s.questions,), generator=generator, device=s.device
        )
        self._merges: dict[str, Merge] = {}

    def build(self, peer: str) -> Call:
        """The call that is timed."""
        # The peers' modules read this one's names.
        from benchmarks.peers.context_merge import COPY, build

        if peer == COPY:
            target = torch.empty_like(self.output)
            return lambda: target.copy_(self.output)
        self._merges[peer] = merge = build(peer, self)
        return lambda: merge(self.output, self.previous)

    def check(self, peer: str) -> Check:
        """Merged probabilities, choice and entropies against the definition's."""
        from benchmarks.peers.context_merge import COPY

        if peer == COPY:  # it is no merge, and has nothing to be wrong about
            return Check(0.0, TOLERANCE)
        found, expected = self._merges[peer](self.output, self.previous), self._expected
        if not torch.equal(found.chosen, expected.chosen):
            return Check(math.inf, TOLERANCE)
        errors = [
            distance(found.log_probs.double().exp(), expected.log_probs.exp()),
            distance(found.entropies.double(), expected.entropies),
        ]
        return Check(worst(errors), TOLERANCE)

    @cached_property
    def _expected(self) -> Outcome:
        return defined(self.output, self.previous)


def _suggest_words_to_all_rows(logits: Tensor, generator: torch.Generator) -> None:
    """Frequent words, so that rows have words in common."""
    shape = (len(logits), 1, len(SUGGESTED))
    words = torch.randint(FREQUENT, shape, generator=generator, device=logits.device)
    strengths = STRENGTH * torch.tensor(SUGGESTED, device=logits.device)
    rows = logits.shape[1]
    logits.scatter_add_(-1, words.expand(-1, rows, -1), strengths.expand(len(logits), rows, -1))


def defined(output: Tensor, previous: Tensor) -> Outcome:
    """The definition in float64, a row at a time."""
    merged, choices, entropies = [], [], []
    for rows, before in zip(output, previous, strict=True):
        cut = [_cut(row) for row in rows]
        entropy = torch.stack([_entropy(row) for row in cut[1:]])
        score = entropy.clone()
        score[before] -= ETA
        choice = score.argmin()
        pooled, bare = cut[1 + int(choice)], cut[0]
        off = torch.where(bare > -math.inf, (1 + BETA) * pooled - BETA * bare, pooled)
        merged.append(off.masked_fill(pooled == -math.inf, -math.inf).log_softmax(-1))
        choices.append(choice)
        entropies.append(entropy)
    return Outcome(torch.stack(merged), torch.stack(choices), torch.stack(entropies))


def _cut(row: Tensor) -> Tensor:
    """Log-probabilities, −∞ where the mass of what is likelier reaches top_p."""
    log_probs = row.double().log_softmax(-1)
    values, places, counts = log_probs.unique(return_inverse=True, return_counts=True)
    masses = values.exp() * counts
    above = masses.sum() - masses.cumsum(-1)
    return log_probs.masked_fill((above >= TOP_P)[places], -math.inf)


def _entropy(log_probs: Tensor) -> Tensor:
    return torch.special.entr(log_probs.exp()).sum()
