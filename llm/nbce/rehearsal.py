"""`generate` checks its arguments on one token, without the model, before any context is read."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from ropewalk.llm.nbce.devices import input_device
from ropewalk.llm.nbce.generation_checks import refuse_generation

# Said by the reader, whatever the model's own configuration says: batches bring their own cache,
# one call is one generation of its own, texts are looked for by `StopAtText`.
OWN_SETTINGS = {
    "return_dict_in_generate": False,
    "stop_strings": None,
    "cache_implementation": None,
    "is_assistant": False,
}


def rehearse(model: Any, options: dict[str, Any], *, pad: int, max_new_tokens: int) -> None:
    """Raises what `generate` would raise for these options.

    transformers makes up its processors and criteria, and refuses arguments that neither it nor the
    model knows, before it calls the decoding function, which here does nothing.

    Raises:
        TypeError: an option of the wrong kind.
        ValueError: an option that is unknown, or a value that transformers refuses.
    """
    _check_kinds(options)
    lists = {"logits_processor": LogitsProcessorList, "stopping_criteria": StoppingCriteriaList}
    given = {name: kind(options.get(name) or []) for name, kind in lists.items()}
    token = torch.full((1, 1), pad, device=input_device(model))
    try:
        model.generate(
            token,
            attention_mask=torch.ones_like(token),
            custom_generate=_nothing,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            **{**options, **given, **OWN_SETTINGS, "use_cache": False},
        )
    except TypeError as error:
        # Python's words for what was done with a value; which one it was, they do not say.
        raise TypeError(
            "expected options of generate of the right kinds, got "
            f"{', '.join(f'{name}={value!r}' for name, value in options.items())}: {error}"
        ) from error


def _nothing(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Tensor:
    refuse_generation(model, generation_config)
    return input_ids


def _check_kinds(options: dict[str, Any]) -> None:
    """What transformers would not find out before it runs the model, or says badly."""
    for name in ("logits_processor", "stopping_criteria"):
        some = options.get(name)
        listed = isinstance(some, Iterable) and not isinstance(some, str | bytes | dict)
        if some is not None and not (listed and all(map(callable, some))):
            raise TypeError(
                f"{name}: expected a list of functions (input_ids, scores), got {some!r}; put a "
                "single one into a list"
            )
    allowed = options.get("prefix_allowed_tokens_fn")
    if allowed is not None and not callable(allowed):
        raise TypeError(f"prefix_allowed_tokens_fn: expected a function, got {allowed!r}")
    seconds = options.get("max_time")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, Real)):
        raise TypeError(f"max_time: expected a number of seconds, got {seconds!r}")
    end: Any = options.get("eos_token_id")
    # Tensors, numpy's arrays and its numbers.
    ends = end.tolist() if hasattr(end, "tolist") else end
    for token in ends if isinstance(ends, list | tuple) else [ends]:
        if token is not None and (isinstance(token, bool) or not isinstance(token, Integral)):
            raise TypeError(
                f"eos_token_id: expected a token's number or a list of them, got {end!r}; "
                "tokenizer.convert_tokens_to_ids gives the number"
            )
