"""Models, texts and weights that cannot be used, found out before the model runs."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

from ropewalk.blocks.nbce import ContextMerge

Prior = Tensor | Sequence[float] | Sequence[Sequence[float]] | None


def texts_and_names(
    contexts: Sequence[str] | Mapping[str, str], names: Sequence[str] | None
) -> tuple[list[str], tuple[str, ...]]:
    """The texts of contexts and their names; numbered from 1 where they have none.

    Raises:
        TypeError: one text instead of several, or something that is no text.
        ValueError: no context, an empty one, or names that are missing or not distinct.
    """
    if isinstance(contexts, str | bytes) or not isinstance(contexts, Mapping | Sequence):
        raise TypeError(
            "contexts: expected a list of texts, or texts by name, got "
            f"{type(contexts).__name__}; put a single context into a list"
        )
    if isinstance(contexts, Mapping):
        if names is not None:
            raise ValueError("names: expected None where contexts come with names of their own")
        names, contexts = list(contexts), list(contexts.values())
    texts = list(contexts)
    if not texts:
        raise ValueError("contexts: expected at least one, got none")
    if isinstance(names, str):
        raise TypeError("names: expected a list of names, got one str; put it into a list")
    given = (
        [f"context {place + 1}" for place in range(len(texts))] if names is None else list(names)
    )
    for kind, items in (("contexts", texts), ("names", given)):
        for place, item in enumerate(items):
            if not isinstance(item, str):
                raise TypeError(f"{kind}[{place}]: expected a text, got {type(item).__name__}")
    if len(given) != len(texts):
        raise ValueError(f"names: expected {len(texts)}, one for each context, got {len(given)}")
    twice = sorted({name for name in given if given.count(name) > 1})
    if twice:
        raise ValueError(f"names: expected distinct ones, got {twice[0]!r} more than once")
    for place, text in enumerate(texts):
        if not text.strip():
            raise ValueError(
                f"contexts[{place}] ({given[place]!r}) is empty; leave it out: what the model says "
                "without context is taken into account anyway"
            )
    return texts, tuple(given)


def question_texts(questions: str | Sequence[str]) -> list[str]:
    """One question or several, as a list.

    Raises:
        TypeError: something that is no text.
        ValueError: no question, or an empty one.
    """
    if isinstance(questions, str):
        questions = [questions]
    if not isinstance(questions, Sequence) or isinstance(questions, bytes):
        raise TypeError(
            f"questions: expected a text or a list of texts, got {type(questions).__name__}"
        )
    for place, question in enumerate(questions):
        if not isinstance(question, str):
            raise TypeError(f"questions[{place}]: expected a text, got {type(question).__name__}")
        if not question.strip():
            raise ValueError(f"questions[{place}] is empty; ask something")
    if not questions:
        raise ValueError("questions: expected at least one, got none")
    return list(questions)


def require_text(name: str, text: object) -> str:
    """A text, which may be empty.

    Raises:
        TypeError: something else.
    """
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected a text, got {type(text).__name__}")
    return text


def stop_texts(stop: str | Sequence[str] | None) -> list[str]:
    """Texts at which an answer ends.

    Raises:
        TypeError: something that is no text.
        ValueError: an empty one.
    """
    texts = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list | tuple | set | frozenset):
        raise TypeError(f"stop: expected a text or a list of texts, got {stop!r}")
    texts = list(texts)
    for text in texts:
        if not require_text("stop", text):
            raise ValueError("stop: expected texts that are not empty, got ''")
    return texts


def check_model(model: Any) -> None:
    """A model that can be asked.

    Raises:
        TypeError: no model of transformers that generates.
        ValueError: a model with an encoder.
    """
    if not isinstance(model, PreTrainedModel) or not isinstance(model, GenerationMixin):
        hint = ""
        if hasattr(model, "_orig_mod"):
            hint = "; pass the model itself, model._orig_mod"
        elif hasattr(model, "get_base_model"):
            hint = "; pass what model.get_base_model() returns"
        raise TypeError(
            "model: expected a causal language model of transformers, got "
            f"{type(model).__name__}{hint}"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} has an encoder; contexts can only be merged in decoder-only "
            "models"
        )


def pad_token(model: Any, tokenizer: Any) -> int:
    """The token that rows are padded with: the tokenizer's, otherwise the model's.

    Raises:
        ValueError: there is none.
    """
    for owner in (tokenizer, getattr(model, "generation_config", None)):
        pad = getattr(owner, "pad_token_id", None)
        if isinstance(pad, int) and pad >= 0:
            return pad
    raise ValueError(
        f"tokenizer: expected one with a padding token, got {type(tokenizer).__name__} without; "
        "set tokenizer.pad_token = tokenizer.eos_token"
    )


def check_merge(merge: object, contexts: object = 1) -> None:
    """How to merge how many contexts.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: no context.
    """
    if not isinstance(merge, ContextMerge):
        hint = "; call it, ContextMerge()" if merge is ContextMerge else ""
        raise TypeError(f"merge: expected a ContextMerge, got {merge!r}{hint}")
    if isinstance(contexts, bool) or not isinstance(contexts, Integral):
        raise TypeError(f"contexts: expected how many there are, got {contexts!r}")
    if contexts < 1:
        raise ValueError(f"contexts: expected at least 1, got {contexts}")


def weights_of(
    prior: Prior, merge: ContextMerge, contexts: int, questions: int | None = None
) -> Tensor | None:
    """Weights of contexts as float32, (contexts,) or (questions, contexts).

    Args:
        prior: as given.
        merge: what takes them.
        contexts: how many there are.
        questions: how many there are, if that is known; the weights then have a row for each.

    Raises:
        TypeError: no numbers.
        ValueError: another shape, weights below 0 or not finite, a question whose weights are all
            0, or a pooling that takes no weights.
    """
    if prior is None:
        return None
    if not isinstance(merge.pooling, str):
        raise ValueError(
            "prior: expected None where pooling is a function, which has weights of its own; "
            "let it close over them"
        )
    try:
        weights = torch.as_tensor(prior, dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"prior: expected a weight for each context, got {prior!r}") from error
    if weights.ndim not in (1, 2) or weights.shape[-1] != contexts:
        raise ValueError(
            f"prior: expected shape ({contexts},) or (questions, {contexts}), one weight for each "
            f"context, got {tuple(weights.shape)}"
        )
    if not (weights.isfinite() & (weights >= 0)).all():
        raise ValueError("prior: expected finite weights of at least 0, got others")
    if not weights.any(dim=-1).all():
        raise ValueError("prior: expected at least one weight above 0 for each question, got none")
    if questions is None:
        return weights
    if weights.ndim == 2 and weights.shape[0] not in (1, questions):
        raise ValueError(
            f"prior: expected weights for {questions} questions, got {weights.shape[0]}"
        )
    return weights.expand(questions, contexts)
