"""Ways of generating that merged distributions cannot have, found out before the model runs."""

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

# Arguments of `generate` that the reader sets itself.
OWN_ARGUMENTS = (
    "inputs",
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "custom_generate",
    "max_length",
    "pad_token_id",
    "return_dict_in_generate",
    "cache_implementation",
    "use_cache",
)


def check_options(
    options: Mapping[str, Any],
    *,
    questions: int,
    max_new_tokens: object,
    do_sample: object,
    temperature: float,
    streamer: object,
) -> None:
    """Arguments of `generate` that cannot be had, and what does not go together.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: says which and what to do.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, Integral):
        raise TypeError(f"max_new_tokens: expected an integer, got {max_new_tokens!r}")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    if not isinstance(do_sample, bool):
        raise TypeError(f"do_sample: expected True or False, got {do_sample!r}")
    given = options.get("generation_config")
    if given is not None and not isinstance(given, GenerationConfig):
        raise TypeError(
            f"generation_config: expected a transformers GenerationConfig, got {given!r}; "
            "GenerationConfig(**settings) makes one"
        )
    if streamer is not None and not all(
        callable(getattr(streamer, name, None)) for name in ("put", "end")
    ):
        raise TypeError(
            "streamer: expected an object with put and end, such as transformers' "
            f"TextStreamer(tokenizer), got {streamer!r}"
        )
    if temperature != 1.0 and not do_sample:
        raise ValueError(f"temperature={temperature}: expected do_sample=True with it")
    if streamer is not None and questions > 1:
        raise ValueError(
            f"streamer: expected a single question, got {questions}, whose tokens come at the same "
            "time; ask them one by one"
        )
    for name in OWN_ARGUMENTS:
        if options.get(name) is not None:
            raise ValueError(f"{name} is set by the reader; leave it out")
    if options.get("stop_strings") is not None:
        raise ValueError("stop_strings: use stop instead, which needs no tokenizer")
    if options.get("assistant_model") is not None:
        raise ValueError("assistant_model: expected None, since distributions are merged")


def check_generation(model: Any, options: Mapping[str, Any]) -> None:
    """What `generate` would be refused for, options and the model's own settings together.

    Raises:
        ValueError: says which and what to do.
    """
    config = copy.deepcopy(_configuration(model, options))
    for name, value in options.items():
        if hasattr(config, name):
            setattr(config, name, value)
    refuse_generation(model, config)


def own_stop_texts(model: Any, options: Mapping[str, Any]) -> list[str]:
    """Texts at which the model's own configuration ends generation."""
    own = _configuration(model, options).stop_strings
    return [own] if isinstance(own, str) else list(own or [])


def _configuration(model: Any, options: Mapping[str, Any]) -> GenerationConfig:
    return options.get("generation_config") or model.generation_config


def refuse_generation(model: Any, config: GenerationConfig) -> None:
    """Ways of generating that merged distributions cannot have.

    Raises:
        ValueError: says which and what to do.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} has an encoder; contexts can only be merged in decoder-only "
            "models"
        )
    for name in ("num_beams", "num_return_sequences", "num_beam_groups"):
        if getattr(config, name, None) not in (None, 1):
            raise ValueError(
                f"{name}={getattr(config, name)}: expected 1, since the rows of the batch are the "
                "contexts; ask the same question several times for several samples"
            )
    for name in ("output_attentions", "output_hidden_states", "prefill_chunk_size"):
        if getattr(config, name, None):
            raise ValueError(f"{name} is not supported while contexts are merged; leave it out")
    scale = getattr(config, "guidance_scale", None)
    if scale is not None and scale != 1:
        raise ValueError(
            f"guidance_scale={scale}: expected None, since merging takes the unconditional "
            "distribution off; use ContextMerge.classifier_free_guidance(scale) or beta"
        )
    for name in ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"):
        if getattr(config, name, None) not in (None, 0, 1.0):
            raise ValueError(f"{name} is about encoders; leave it out")
    for name in ("prompt_lookup_num_tokens", "assistant_early_exit", "dola_layers"):
        if getattr(config, name, None):
            raise ValueError(
                f"{name}: expected None, since assisted decoding cannot be had with merged "
                "distributions; leave it out"
            )


def refuse_rows(input_ids: Tensor, contexts: int, prior: Tensor | None) -> int:
    """The number of questions in a batch.

    Raises:
        ValueError: rows that are no multiple of contexts + 1, or weights for another number.
    """
    rows = input_ids.shape[0]
    if rows % (contexts + 1):
        raise ValueError(
            f"input_ids: expected a multiple of {contexts + 1} rows ({contexts} contexts and one "
            f"row without for each question, question-major), got {rows}"
        )
    questions = rows // (contexts + 1)
    if prior is not None and prior.ndim == 2 and prior.shape[0] not in (1, questions):
        raise ValueError(f"prior: expected weights for {questions} questions, got {prior.shape[0]}")
    return questions


def refuse_right_padding(mask: Tensor | None) -> None:
    """Rows that do not end with their last token, from which the next one would be predicted.

    Raises:
        ValueError: says which and what to do.
    """
    if mask is None or mask.ndim != 2:
        return
    rows = (mask[:, -1] == 0).nonzero().flatten().tolist()
    if rows:
        raise ValueError(
            f"attention_mask: expected 1 in the last column, since rows are padded on the left, "
            f"got 0 in {len(rows)} of {mask.shape[0]} rows, the first of them row {rows[0]}; "
            'tokenise with tokenizer.padding_side = "left"'
        )


def refuse_no_numbers(logits: Tensor) -> None:
    """Logits that are NaN, which merging would take for tokens that were cut.

    Raises:
        ValueError: says in which rows.
    """
    rows = logits.isnan().any(dim=-1).nonzero().flatten().tolist()
    if rows:
        raise ValueError(
            f"the model's logits are NaN in {len(rows)} of {logits.shape[0]} rows, the first of "
            f'them row {rows[0]}; run it in another dtype, or with attn_implementation="sdpa" if '
            "padded rows are the ones"
        )


def filled_up(prompts: Sequence[Sequence[int]], questions: int, like: Tensor) -> Tensor:
    """Prompts as one tensor, filled up on the left with their own first token.

    Args:
        prompts: of each question.
        questions: how many there are.
        like: int64 (questions, sequence), whose shape and device the tensor gets.

    Raises:
        ValueError: prompts for another number of questions, empty ones, or longer ones than the
            rows.
    """
    width = like.shape[1]
    if len(prompts) != questions:
        raise ValueError(f"prompts: expected one for each of {questions}, got {len(prompts)}")
    for place, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= width:
            raise ValueError(
                f"prompts[{place}]: expected 1 to {width} tokens, no more than input_ids has, got "
                f"{len(prompt)}"
            )
    rows = [[prompt[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    return torch.tensor(rows, dtype=like.dtype, device=like.device)
