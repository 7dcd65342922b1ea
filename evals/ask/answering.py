"""Model, variant and `ropewalk.llm.NBCE` put together for one set of questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from ropewalk.evals.ask.request import AskRequest
from ropewalk.evals.ask.splitting import split_texts
from ropewalk.evals.errors import EvaluationError, InputError, one_line
from ropewalk.evals.memory import is_out_of_memory
from ropewalk.evals.models import (
    choose_device,
    choose_dtype,
    open_model,
    plugs_something,
)
from ropewalk.evals.request import split_variant
from ropewalk.llm import NBCE
from ropewalk.llm.nbce import Answer
from ropewalk.llm.nbce.chat import chat_frame
from ropewalk.llm.nbce.limits import REMEDIES, limit_of
from ropewalk.llm.tokens import prefix_tokens
from ropewalk.llm.variants import ResolvedVariant

# How the command line mends what `REMEDIES` says for Python.
OPTIONS = (
    "split it with --split, read further with --variant rerope+log-n (see `ropewalk "
    "variants`), or give --max-length if the model does read so much"
)


@dataclass(frozen=True)
class Answered:
    """Answers to all questions of a request.

    Attributes:
        answers: in the order of the questions.
        lengths: name of each context → its tokens.
        settings: what the request leaves open, as plain data: fingerprint of the model, the variant
            that was plugged, limit of length, dtype, device, and digests of the contexts' files.
    """

    answers: Sequence[Answer]
    lengths: dict[str, int]
    settings: dict[str, Any]


class Asking:
    """A request whose model has been opened; weights are loaded by `answer`.

    Args:
        request: what is asked.

    Raises:
        InputError: the request cannot be carried out.
    """

    def __init__(self, request: AskRequest) -> None:
        self._contexts = request.check()
        self._request = request
        self._device = choose_device(request.device)
        self._dtype = choose_dtype(request.dtype, self._device)
        self._as_it_is = not plugs_something(split_variant(request.variant)[0])
        self._source = open_model(
            request.model,
            trust_remote_code=request.trust_remote_code,
            as_it_is=self._as_it_is,
        )
        tokenizer = self._source.tokenizer
        if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
            # Many models have none. Padding is masked, so any token will do.
            tokenizer.pad_token = tokenizer.eos_token
        self._frame = _chat_frame(request, tokenizer) if request.chat else ("", "")
        self._variant = self._resolve()

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._source.tokenizer

    def answer(self, streamer: BaseStreamer | None = None) -> Answered:
        """Reads the contexts, each by itself, and answers all questions.

        Args:
            streamer: gets the tokens as they come; for a single question.

        Raises:
            InputError: a context that is too long, or anything else the model cannot do.
            EvaluationError: memory does not suffice.
        """
        request = self._request
        model = self._source.load(dtype=self._dtype, device=self._device)
        if request.sample:
            torch.manual_seed(request.seed or 0)
        try:
            with self._variant.plug(model):
                reader = NBCE(
                    model,
                    self.tokenizer,
                    request.merge,
                    separator=request.separator,
                    max_length=self._max_length(),
                )
                limit = limit_of(model, reader.max_length)
                parts = self._parts(limit)
                encoded = reader.encode(
                    {name: text for name, (_, text) in parts.items()},
                    request.prefix,
                    chat=request.chat,
                )
                answers = reader.ask(
                    list(request.questions),
                    prior=self._weights(parts),
                    max_new_tokens=request.max_new_tokens,
                    do_sample=request.sample,
                    temperature=1.0 if request.temperature is None else request.temperature,
                    streamer=streamer,
                    stop=list(request.stop) or None,
                )
        except Exception as error:
            if is_out_of_memory(error):
                raise EvaluationError(
                    "out of memory; give fewer or shorter contexts, or a larger --device"
                ) from error
            if isinstance(error, InputError) or not isinstance(
                error, ValueError | TypeError | OverflowError
            ):
                raise
            mended = ValueError(str(error).replace(REMEDIES, OPTIONS))
            raise InputError(one_line(mended)) from error
        lengths = dict(zip(encoded.names, encoded.lengths, strict=True))
        settings = {
            "fingerprint": self._source.fingerprint,
            "variant": self._variant.describe(),
            "max_length": limit,
            "dtype": str(self._dtype).removeprefix("torch."),
            "device": str(self._device),
            "digests": {part: self._contexts.digests[name] for part, (name, _) in parts.items()},
        }
        return Answered(answers, lengths, settings)

    def _max_length(self) -> int | None:
        """Only a rule that was asked for makes a model read further than it was trained to."""
        own = plugs_something(self._source.native)
        if self._request.max_length is None and self._as_it_is and own:
            return self._source.trained_length
        return self._request.max_length

    def _parts(self, limit: int | None) -> dict[str, tuple[str, str]]:
        """Name of each context → name of its file, and text; of one context a file at most unless
        files may be split.
        """
        texts = self._contexts.texts
        if not self._request.split or limit is None:
            return {name: (name, text) for name, text in texts.items()}
        return split_texts(texts, limit - self._around(), self._tokens)

    def _weights(self, parts: dict[str, tuple[str, str]]) -> list[float] | None:
        """Weights of the contexts; parts have those of their files."""
        if not self._request.prior:
            return None
        weights = dict(zip(self._contexts.texts, self._request.prior, strict=True))
        return [weights[name] for name, _ in parts.values()]

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _around(self) -> int:
        """Tokens of a row that are not its context's, the longest answer included."""
        request = self._request
        before, after = self._frame
        first = 0 if request.chat else len(prefix_tokens(self.tokenizer))
        return (
            first
            + self._tokens(before + request.prefix)
            + self._tokens(request.separator)
            + max(map(self._tokens, request.questions))
            + self._tokens(after)
            + request.max_new_tokens
        )

    def _resolve(self) -> ResolvedVariant:
        """The variant with the defaults that follow from the longest row."""
        request, source = self._request, self._source
        longest = self._around() + max(map(self._tokens, self._contexts.texts.values()))
        if request.split and request.max_length is not None:
            longest = min(longest, request.max_length)
        variant, _ = split_variant(request.variant)
        try:
            return variant.over(source.native).resolve(source.trained_length, longest)
        except (ValueError, OverflowError) as error:
            raise InputError(f"variant {request.variant!r}: {one_line(error)}") from error


def _chat_frame(request: AskRequest, tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before and after a row.

    Raises:
        InputError: there is none, or none that can be used.
    """
    try:
        return chat_frame(tokenizer)
    except Exception as error:  # a template is a program, which may raise anything
        said = one_line(error).removeprefix("chat=True: ").replace("leave chat", "leave --chat")
        raise InputError(f"--chat with model {request.model!r}: {said}") from error
