"""`NBCE`: many contexts, each read apart and once, and any number of questions about all of them.

    reader = NBCE(model, tokenizer)
    encoded = reader.encode({"a.txt": first, "b.txt": second}, prefix="Answer from the text.")
    answer = reader.ask("Who found the key?")
    answer.text, [(span.text, span.name) for span in answer.spans]

Each token costs one forward pass of a batch of questions × (contexts + 1) rows, whose next-token
distributions `ContextMerge` makes one. So a model reads as many contexts as fit into memory, each
of the length it was trained to read.

A row is, as tokens, what the tokenizer itself puts first, then prefix, context, separator and
question. The pieces are tokenised apart, because one encoding of a context serves many questions:
where a tokenizer would join characters across a boundary, the tokens differ from those of the
joined text. The row without context is prefix, separator and question.

Limits: contexts have no order, and an answer that takes two of them at once is not found.
Source: Su, kexue.fm/archives/9617 and 9632; `ropewalk.blocks.nbce` has the equation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from ropewalk.blocks.nbce import ContextMerge
from ropewalk.llm.nbce import limits
from ropewalk.llm.nbce.answer import Answer, Trace, make_answer
from ropewalk.llm.nbce.asking import Request, generate_answers
from ropewalk.llm.nbce.cache import accepts, can_be_cut
from ropewalk.llm.nbce.chat import chat_frame
from ropewalk.llm.nbce.devices import storage_device
from ropewalk.llm.nbce.encode import read_contexts
from ropewalk.llm.nbce.encoded import EncodedContexts, ReadBy
from ropewalk.llm.nbce.generation_checks import (
    check_generation,
    check_options,
    own_stop_texts,
)
from ropewalk.llm.nbce.modes import evaluating
from ropewalk.llm.nbce.padding_probe import refuse_readers_of_padding
from ropewalk.llm.nbce.rehearsal import rehearse
from ropewalk.llm.nbce.validation import (
    check_merge,
    check_model,
    pad_token,
    question_texts,
    require_text,
    stop_texts,
    texts_and_names,
    weights_of,
)
from ropewalk.llm.tokens import prefix_tokens

_NBCE = ContextMerge()


class NBCE:
    """Asks a causal language model about many contexts at once.

    Any decoder-only model of transformers will do, plugged or not, but for those that read padding
    as text, which are refused. Where its cache holds keys and values for each token, contexts are
    read once; where it holds something else (recurrent states), they are read again with every
    question. Where rotary frequencies follow the length of the text (dynamic NTK, LongRoPE), rows
    beyond the original length are refused, since rows of a batch would not be rotated as each
    alone. Positions begin at 0, as in `generate`; decoders that count otherwise (RoBERTa's) are
    given the same.

    Contexts that were read belong to the weights the model had then. Another dtype, device or rule
    is noticed; weights that were changed in place are not, so encode again after training.

    Args:
        model: the model; it is run in evaluation mode and left in the mode it was in.
        tokenizer: its tokenizer, with a padding token. It is not changed.
        merge: how the contexts' distributions become one.
        separator: between context and question.
        max_length: how many tokens a row may have, answer included. None is the length the model
            reads by its configuration, and no limit if something is plugged into it, or if its
            configuration names no length.
        rows_at_once: how many contexts to read at once, and how many rows to generate at once (at
            least those of one question); None leaves both to the memory that is free.
        cache_device: where the contexts' keys and values are kept: a device, or "auto" for the
            model's unless they would take more than half of what is free there, and the host then.

    Attributes:
        encoded: what was encoded last, None at first.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a model with an encoder, or a tokenizer without a padding token.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        merge: ContextMerge = _NBCE,
        *,
        separator: str = "\n\n",
        max_length: int | None = None,
        rows_at_once: int | None = None,
        cache_device: str | torch.device = "auto",
    ) -> None:
        check_model(model)
        check_merge(merge)
        self.model = model
        self.tokenizer = tokenizer
        self.merge = merge
        self.separator = require_text("separator", separator)
        self.max_length = limits.require_count("max_length", max_length)
        self.rows_at_once = limits.require_count("rows_at_once", rows_at_once)
        self.cache_device = storage_device(cache_device)
        self.encoded: EncodedContexts | None = None
        pad_token(model, tokenizer)

    def encode(
        self,
        contexts: Sequence[str] | Mapping[str, str],
        prefix: str = "",
        names: Sequence[str] | None = None,
        *,
        chat: bool = False,
    ) -> EncodedContexts:
        """Reads contexts, each by itself.

        Args:
            contexts: texts, or texts by name. None of them is ever truncated.
            prefix: what stands before every context and before a question without any.
            names: of the contexts, distinct; "context 1" and so on by default.
            chat: whether prefix, context, separator and question are said by a user in the
                tokenizer's chat template, and the answer by the assistant.

        Returns:
            What was read, for any number of questions. `ask` takes the latest by itself.

        Raises:
            TypeError: something that is no text.
            ValueError: no context, an empty one, one that is longer than the model reads, or names
                that do not fit, or no chat template; the model has not been run then.
        """
        self.encoded = self._read(self._tokenised(contexts, prefix, names, chat))
        return self.encoded

    @overload
    def ask(
        self,
        questions: str,
        contexts: EncodedContexts | Sequence[str] | Mapping[str, str] | None = None,
        **options: Any,
    ) -> Answer: ...
    @overload
    def ask(
        self,
        questions: list[str] | tuple[str, ...],
        contexts: EncodedContexts | Sequence[str] | Mapping[str, str] | None = None,
        **options: Any,
    ) -> list[Answer]: ...
    def ask(
        self,
        questions: str | Sequence[str],
        contexts: EncodedContexts | Sequence[str] | Mapping[str, str] | None = None,
        *,
        prior: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        streamer: BaseStreamer | None = None,
        stop: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Answer | list[Answer]:
        """Answers questions, each from all contexts.

        Args:
            questions: one question, or several that are answered as one batch.
            contexts: what `encode` returned, or texts to encode first, without a prefix; what was
                encoded last by default.
            prior: weights of the contexts, such as a retriever's scores, (contexts,) or
                (questions, contexts); a context of weight 0 is left out.
            max_new_tokens: the greatest length of an answer.
            do_sample: whether tokens are drawn from the merged distribution; the likeliest is taken
                otherwise.
            temperature: of that distribution when drawing.
            streamer: gets the tokens as they come; for a single question. The stop text is among
                them, though `text` ends before it.
            stop: text, or texts, before which an answer ends.
            options: further arguments of `generate`, such as top_k, repetition_penalty,
                logits_processor or stopping_criteria. They see one row a question: separator and
                question as the prompt, and the merged distribution. Of several questions the
                shorter are filled up on the left with their first token, which transformers' own
                processors take no notice of.

        Returns:
            The answer to one question; a list of them for several.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: no question, an empty one, nothing encoded, contexts that another model
                read or with other rules plugged, rows longer than the model reads, weights that do
                not fit, or options that cannot be had; the model has not been run then.
        """
        texts = question_texts(questions)
        check_options(
            options,
            questions=len(texts),
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            streamer=streamer,
        )
        check_generation(self.model, options)
        stops = [*stop_texts(stop), *own_stop_texts(self.model, options)]
        encoded = self._about(contexts)
        weights = weights_of(prior, self.merge, len(encoded), len(texts))
        separator = self._tokens(self.separator)
        tails = [[*separator, *self._tokens(text), *encoded.ending] for text in texts]
        reach = limits.Reach.of(self.model, self.max_length)
        limits.refuse_long_rows(reach, encoded, texts, list(map(len, tails)), max_new_tokens)
        request = Request(
            self.merge,
            self.tokenizer,
            pad_token(self.model, self.tokenizer),
            max_new_tokens,
            stops,
            streamer,
            {
                **options,
                "do_sample": do_sample,
                **({"temperature": temperature} if do_sample else {}),
            },
        )
        rehearse(self.model, request.options, pad=request.pad, max_new_tokens=max_new_tokens)
        if contexts is not None and encoded is not contexts:
            encoded = self.encoded = self._read(encoded)
        with evaluating(self.model):
            generated = generate_answers(
                self.model, encoded, tails, weights, request, rows_at_once=self.rows_at_once
            )
        answers = [
            make_answer(
                self.tokenizer,
                text,
                one.tokens,
                Trace(one.chosen, one.entropies, encoded.names),
                stops,
            )
            for text, one in zip(texts, generated, strict=True)
        ]
        return answers[0] if isinstance(questions, str) else answers

    def _about(
        self, contexts: EncodedContexts | Sequence[str] | Mapping[str, str] | None
    ) -> EncodedContexts:
        """The contexts of a question; texts are not read yet."""
        if contexts is not None and not isinstance(contexts, EncodedContexts):
            return self._tokenised(contexts)
        encoded = self.encoded if contexts is None else contexts
        if encoded is None:
            raise ValueError("nothing has been encoded yet; call encode first or pass contexts")
        encoded.read_by.refuse_others(self.model)
        return encoded

    def _tokenised(
        self,
        contexts: Sequence[str] | Mapping[str, str],
        prefix: str = "",
        names: Sequence[str] | None = None,
        chat: bool = False,
    ) -> EncodedContexts:
        """Contexts that have been checked and not read yet."""
        texts, distinct = texts_and_names(contexts, names)
        before, after = chat_frame(self.tokenizer) if chat else ("", "")
        # A template says itself what comes first.
        special = [] if chat else prefix_tokens(self.tokenizer)
        base = [*special, *self._tokens(before + require_text("prefix", prefix))]
        tokens = [self._tokens(text) for text in texts]
        reach = limits.Reach.of(self.model, self.max_length)
        limits.refuse_long_contexts(reach, len(base), distinct, list(map(len, tokens)))
        return EncodedContexts(distinct, tokens, base, self._tokens(after), ReadBy.of(self.model))

    def _read(self, contexts: EncodedContexts) -> EncodedContexts:
        cut = can_be_cut(self.model)
        with evaluating(self.model):
            if not (cut and accepts(self.model, "position_ids")):
                refuse_readers_of_padding(self.model, pad_token(self.model, self.tokenizer))
            if not cut:
                return contexts
            kept = read_contexts(
                self.model,
                contexts.base,
                contexts.tokens,
                rows_at_once=self.rows_at_once,
                cache_device=self.cache_device,
            )
        return replace(contexts, kept=kept)

    def _tokens(self, text: str) -> list[int]:
        # verbose=False: that a text is longer than the model reads is said in our own words.
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
