"""Logits of the last tokens of sequences, and of no others."""

import inspect
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.llm.last_queries import only_last_read


def scored_logits(
    model: Any, tokens: Int[Tensor, "batch length"], scored: int
) -> Float[Tensor, "batch scored vocabulary"]:
    """Logits that predict the last `scored` of `tokens`, each from all tokens before it.

    The last layer's attention is computed for the tokens whose logits these are only.
    """
    with only_last_read(model, scored):
        return last_logits(model, scored, input_ids=tokens[:, :-1], use_cache=False)


def last_logits(model: Any, count: int, **inputs: Any) -> Float[Tensor, "batch count vocabulary"]:
    """Logits of the last `count` tokens of a forward pass.

    Models whose forward pass takes `logits_to_keep` compute no others; for the rest all are
    computed and sliced, because a model may scale or cap its logits after the head.
    """
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**inputs, logits_to_keep=count).logits
    return model(**inputs).logits[:, -count:]
