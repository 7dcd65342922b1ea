"""Who answers questions about many contexts.

    ask            `ropewalk.llm.NBCE.ask`: contexts are read once, a token is one forward pass
    loop           one context at a time, each with transformers' DynamicCache, a pass for each row
                   and token; anew for each question
    loop-float64   the plain loop: one context at a time in float64, all again at each token
    batch          all rows of a question as one padded batch with a DynamicCache, read anew for
                   each question

All merge by the same `ContextMerge`, and take the likeliest token.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.case import Unavailable
from ropewalk.blocks.nbce import ContextMerge, MergeState

if TYPE_CHECKING:
    from benchmarks.nbce import Answers, NBCEWorkload

MERGE = ContextMerge()


def build(name: str, workload: "NBCEWorkload") -> "Callable[[], Answers]":
    """The call that a peer times.

    Raises:
        Unavailable: it cannot take part.
    """
    if name == "ask":
        return _ask(workload)
    ways: dict[str, Callable[..., list[int]]] = {
        "loop": one_at_a_time,
        "loop-float64": all_again,
        "batch": one_batch,
    }
    model, way = (workload.double if name == "loop-float64" else workload.model), ways[name]
    return lambda: [way(model, rows, workload) for rows in workload.rows]


def _ask(workload: "NBCEWorkload") -> "Callable[[], Answers]":
    try:
        from ropewalk.llm import NBCE
    except ImportError as error:
        raise Unavailable(f"asking needs ropewalk[llm]: {error}") from None
    reader = NBCE(workload.model, workload.tokenizer, MERGE)
    tokens = workload.asked.tokens

    def ask() -> "Answers":
        answers = reader.ask(
            workload.questions, workload.contexts, max_new_tokens=tokens, min_new_tokens=tokens
        )
        return [list(answer.tokens) for answer in answers]

    return ask


class _Chooser:
    """The likeliest token of the merged distribution, and the state between steps."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._state: MergeState | None = None

    def __call__(self, logits: Tensor) -> int:
        """From logits (1 + contexts, vocabulary)."""
        log_probs, self._state = MERGE.merge(logits[1:], logits[0], self._state)
        log_probs[self._end] = float("-inf")
        return int(log_probs.argmax())


@torch.inference_mode()
def one_at_a_time(model: Any, rows: list[list[int]], workload: "NBCEWorkload") -> list[int]:
    """An answer by a pass for each row and token, with a cache for each row."""
    from transformers import DynamicCache

    caches = [DynamicCache() for _ in rows]
    fed, answer, choose = rows, [], _Chooser(workload.end)
    while len(answer) < workload.asked.tokens:
        logits = [
            _last(model, tokens, past_key_values=cache)
            for tokens, cache in zip(fed, caches, strict=True)
        ]
        answer.append(choose(torch.stack(logits)))
        fed = [answer[-1:]] * len(rows)
    return answer


@torch.inference_mode()
def all_again(model: Any, rows: list[list[int]], workload: "NBCEWorkload") -> list[int]:
    """An answer by a pass for each row and token, without any cache."""
    answer, choose = [], _Chooser(workload.end)
    while len(answer) < workload.asked.tokens:
        logits = [_last(model, [*row, *answer], use_cache=False) for row in rows]
        answer.append(choose(torch.stack(logits)))
    return answer


@torch.inference_mode()
def one_batch(model: Any, rows: list[list[int]], workload: "NBCEWorkload") -> list[int]:
    """An answer by a pass for each token, of all rows padded on the left."""
    from transformers import DynamicCache

    longest, device = max(map(len, rows)), model.device
    pads = torch.tensor([longest - len(row) for row in rows], device=device)[:, None]
    fed = torch.tensor([[workload.end] * (longest - len(row)) + row for row in rows], device=device)
    places = torch.arange(longest, device=device)
    cache, answer, choose = DynamicCache(), [], _Chooser(workload.end)
    while len(answer) < workload.asked.tokens:
        mask = (torch.arange(longest + len(answer), device=device) >= pads).long()
        logits = model(
            fed,
            attention_mask=mask,
            position_ids=(places - pads).clamp(min=0),
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]
        answer.append(choose(logits))
        fed = fed.new_full((len(rows), 1), answer[-1])
        places = places[-1:] + 1
    return answer


def _last(model: Any, tokens: list[int], **options: Any) -> Tensor:
    """Logits (vocabulary,) after one row."""
    row = torch.tensor([tokens], device=model.device)
    return model(row, logits_to_keep=1, **options).logits[0, -1]
