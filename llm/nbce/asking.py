"""Generating answers: as many questions at once as fit into memory.

A group of questions is one batch. Where memory fails the group is halved, and where even one
question is too much, the batch's cache is kept on the host and brought to the device layer by
layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.llm.device_memory import USABLE, free_memory, is_out_of_memory
from ropewalk.llm.nbce.decoding import MergedDecoding
from ropewalk.llm.nbce.devices import input_device
from ropewalk.llm.nbce.encoded import EncodedContexts
from ropewalk.llm.nbce.memory import forward_bytes, merging_bytes
from ropewalk.llm.nbce.rehearsal import OWN_SETTINGS
from ropewalk.llm.nbce.rows import assemble
from ropewalk.llm.nbce.stopping import StopAtText

# New tokens that a batch's cache has room for from the start; it grows when there are more.
ROOM = 256


@dataclass(frozen=True, eq=False)
class Request:
    """How answers are generated.

    Attributes:
        merge: how distributions are merged.
        tokenizer: decodes answers in search of the stop texts.
        pad: token to pad with.
        max_new_tokens: the greatest length of an answer.
        stops: texts at which an answer ends.
        streamer: gets the tokens as they come.
        options: further arguments of `generate`.
    """

    merge: ContextMerge
    tokenizer: Any
    pad: int
    max_new_tokens: int
    stops: list[str]
    streamer: BaseStreamer | None
    options: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Generated:
    """One answer as tokens, with its trace on the host."""

    tokens: list[int]
    chosen: Int[Tensor, " steps"]
    entropies: Float[Tensor, "steps contexts"]


def generate_answers(
    model: Any,
    encoded: EncodedContexts,
    tails: Sequence[Sequence[int]],
    weights: Float[Tensor, "questions contexts"] | None,
    request: Request,
    *,
    rows_at_once: int | None = None,
) -> list[Generated]:
    """Answers to questions.

    Args:
        model: the model that read the contexts.
        encoded: the contexts.
        tails: separator and question, of each question, as tokens.
        weights: of the contexts.
        request: how answers are generated.
        rows_at_once: the greatest batch, but for a single question; None leaves that to the memory.
    """
    group = len(encoded) + 1
    row_bytes = _row_bytes(model, encoded, tails, request.max_new_tokens)
    fitting = int(USABLE * free_memory(input_device(model))) // row_bytes
    at_once = max(1, min(len(tails), (rows_at_once or fitting) // group))
    on_host = encoded.reusable and fitting < group
    answers: list[Generated] = []
    while len(answers) < len(tails):
        part = slice(len(answers), len(answers) + at_once)
        some = None if weights is None else weights[part]
        generated = _try(model, encoded, tails[part], some, request, on_host, last=at_once == 1)
        if generated is not None:
            answers += generated
        elif at_once > 1:
            at_once //= 2
        else:
            on_host = True
    return answers


def _try(
    model: Any,
    encoded: EncodedContexts,
    tails: Sequence[Sequence[int]],
    weights: Tensor | None,
    request: Request,
    on_host: bool,
    *,
    last: bool,
) -> list[Generated] | None:
    """Answers to a group of questions; None if memory failed and there is another way."""
    can_move = encoded.reusable and input_device(model).type != "cpu" and not on_host
    try:
        return _generate(model, encoded, tails, weights, request, on_host)
    except (RuntimeError, MemoryError) as error:
        # What a streamer has shown cannot be taken back.
        if not is_out_of_memory(error) or (last and not can_move) or request.streamer is not None:
            raise
        return None


def _generate(
    model: Any,
    encoded: EncodedContexts,
    tails: Sequence[Sequence[int]],
    weights: Tensor | None,
    request: Request,
    on_host: bool,
) -> list[Generated]:
    room = min(request.max_new_tokens, ROOM)
    inputs = assemble(model, encoded, tails, pad=request.pad, room=room, on_host=on_host)
    prompt = inputs["input_ids"].shape[1]
    decoding = MergedDecoding(
        request.merge,
        contexts=len(encoded),
        prior=weights,
        streamer=request.streamer,
        prompts=tails,
    )
    options = dict(request.options)
    if encoded.reusable:
        # Some models' own configuration says otherwise, which is about a cache of their own.
        options["use_cache"] = True
    criteria = StoppingCriteriaList(options.pop("stopping_criteria", None) or [])
    if request.stops:
        criteria.append(StopAtText(request.tokenizer, request.stops, prompt))
    sequences = model.generate(
        **inputs,
        custom_generate=decoding,
        max_new_tokens=request.max_new_tokens,
        pad_token_id=request.pad,
        stopping_criteria=criteria,
        logits_processor=LogitsProcessorList(options.pop("logits_processor", None) or []),
        **{**options, **OWN_SETTINGS},
    )
    return [
        Generated(
            sequences[place, prompt : prompt + steps].tolist(),
            decoding.chosen[place, :steps].cpu(),
            decoding.entropies[place, :steps].cpu(),
        )
        for place, steps in enumerate(decoding.lengths.tolist())
    ]


def _row_bytes(
    model: Any, encoded: EncodedContexts, tails: Sequence[Sequence[int]], new: int
) -> int:
    """About what a row takes while answers are generated."""
    question = max(map(len, tails))
    longest = len(encoded.base) + max(encoded.lengths) + question
    read = question if encoded.reusable else longest
    cache = (longest + new) * encoded.bytes_per_token
    return cache + forward_bytes(model, read) + merging_bytes(model) or 1
