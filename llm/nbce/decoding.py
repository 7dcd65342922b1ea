"""`generate` with one token for all rows of a question: `model.generate(…, custom_generate=…)`.

Rows are question-major: of each question first the row without context, then one for every context.
All rows are one batch; their next-token distributions are merged, and what transformers knows of
decoding (logits processors and warpers, stopping criteria, the streamer, end-of-text tokens) sees
the merged ones, one row a question. Sampling therefore draws one token a question, and rows never
diverge. As the tokens so far, processors and criteria see those of the row without context.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from ropewalk.blocks.nbce import ContextMerge, MergeState
from ropewalk.llm.nbce.generation_checks import (
    filled_up,
    refuse_generation,
    refuse_no_numbers,
    refuse_right_padding,
    refuse_rows,
)
from ropewalk.llm.nbce.processors import for_questions
from ropewalk.llm.nbce.steps import Steps
from ropewalk.llm.nbce.validation import check_merge, weights_of


class MergedDecoding:
    """Greedy decoding or sampling from merged distributions, for `generate(custom_generate=…)`.

        decoding = MergedDecoding(ContextMerge(), contexts=3)
        tokens = model.generate(**rows, custom_generate=decoding, max_new_tokens=64)
        decoding.chosen    # which context each token came from

    Rows are padded on the left. What `generate` returns has one row a question, that of the row
    without context continued; scores are the merged ones. Give the streamer here: transformers does
    not pass its own on. Where rotary frequencies follow the length of the text (dynamic NTK,
    LongRoPE), all rows have those of the longest, as everywhere in `generate`; `NBCE` refuses that.

    Args:
        merge: how distributions are merged.
        contexts: how many each question has, without the row that has none.
        prior: weights of the contexts, (contexts,) or (questions, contexts).
        streamer: gets the prompts, then the new tokens as they come.
        prompts: of each question the tokens that processors, criteria and streamer take for its
            prompt; by default all that `generate` was given of the row without context. They are
            filled up on the left with their own first token, so that no padding counts as said;
            transformers' processors of n-grams and sequences do not see what was filled up.

    Attributes:
        chosen: int64 (questions, steps), of the latest call: the context of least entropy under
            pooling="min_entropy", under any other the one that thinks the token most probable.
        entropies: float (questions, steps, contexts).
        lengths: new tokens of each question until it was finished, its last one included.

    Raises:
        ValueError: no context, or weights of another shape, below 0 or all 0.
        TypeError: an argument of the wrong kind.
    """

    def __init__(
        self,
        merge: ContextMerge,
        *,
        contexts: int,
        prior: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        streamer: BaseStreamer | None = None,
        prompts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        check_merge(merge, contexts)
        self.merge = merge
        self.contexts = contexts
        self.prior = weights_of(prior, merge, contexts)
        self.streamer = streamer
        self.prompts = prompts
        self._states: list[MergeState] = []
        self._sources: list[Int[Tensor, " questions"]] = []
        self._lengths: Int[Tensor, " questions"] = torch.zeros(0, dtype=torch.int64)

    @property
    def chosen(self) -> Int[Tensor, "questions steps"]:
        """Which context each token of the latest call came from."""
        self._of_a_call()
        return torch.stack(self._sources, dim=1)

    @property
    def entropies(self) -> Float[Tensor, "questions steps contexts"]:
        """Of every context's prediction at every step of the latest call, in nats."""
        return torch.stack([state.entropies for state in self._of_a_call()], dim=1)

    @property
    def lengths(self) -> Int[Tensor, " questions"]:
        """New tokens of each question in the latest call, without padding behind its last one."""
        self._of_a_call()
        return self._lengths

    def __call__(
        self,
        model: Any,
        input_ids: Int[Tensor, "rows sequence"],
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> GenerateDecoderOnlyOutput | Int[Tensor, "questions tokens"]:
        """What `generate` calls in the place of its own loop.

        Raises:
            ValueError: rows that are no multiple of contexts + 1 or padded on the right, or a way
                of decoding that cannot be had with merged distributions, and nothing has been
                computed then; or a model whose first logits are NaN.
        """
        refuse_generation(model, generation_config)
        questions = refuse_rows(input_ids, self.contexts, self.prior)
        refuse_right_padding(model_kwargs.get("attention_mask"))
        rows = Steps(
            model,
            input_ids,
            _known_length(input_ids, generation_config, model_kwargs),
            model_kwargs,
        )
        pad = _pad_token(generation_config)
        criteria: Any = stopping_criteria
        answers = input_ids[:: self.contexts + 1]
        if self.prompts is not None:
            answers = filled_up(self.prompts, questions, answers)
        processors = for_questions(
            logits_processor, self.contexts + 1, self.prompts, input_ids.shape[1]
        )
        unfinished = torch.ones(questions, dtype=torch.bool, device=input_ids.device)
        self._states, self._sources = [], []
        self._lengths = torch.zeros_like(unfinished, dtype=torch.int64)
        scores: Any = () if generation_config.output_scores else None
        merged: Any = () if generation_config.output_logits else None
        if self.streamer is not None:
            alone = None if self.prompts is None or questions > 1 else self.prompts[0]
            self.streamer.put(answers.cpu() if alone is None else torch.tensor([list(alone)]))
        while bool(unfinished.any()):
            logits = rows.next_logits().view(questions, self.contexts + 1, -1)
            log_probs = self._merge(logits).to(input_ids.device)
            adjusted = processors(answers, log_probs)
            if scores is not None:
                scores += (adjusted,)
            if merged is not None:
                merged += (log_probs,)
            tokens = _pick(adjusted, generation_config.do_sample)
            self._sources.append(self._source(logits[:, 1:], tokens.to(logits.device)))
            if pad is not None:
                tokens = torch.where(unfinished, tokens, pad)
            answers = torch.cat([answers, tokens[:, None]], dim=-1)
            rows.append(tokens.repeat_interleave(self.contexts + 1))
            self._lengths = self._lengths + unfinished
            if self.streamer is not None:
                self.streamer.put(tokens.cpu())
            unfinished = unfinished & ~criteria(answers, scores)
        if self.streamer is not None:
            self.streamer.end()
        if not generation_config.return_dict_in_generate:
            return answers
        fields: dict[str, Any] = {"sequences": answers, "past_key_values": rows.cache}
        return GenerateDecoderOnlyOutput(**fields, scores=scores, logits=merged)

    def _merge(
        self, logits: Float[Tensor, "questions rows vocabulary"]
    ) -> Float[Tensor, "questions vocabulary"]:
        if not self._states:
            refuse_no_numbers(logits.flatten(0, 1))
        previous = self._states[-1] if self._states else None
        prior = None if self.prior is None else self.prior.to(logits.device)
        log_probs, state = self.merge.merge(logits[:, 1:], logits[:, 0], previous, prior=prior)
        self._states.append(state)
        return log_probs

    def _source(
        self,
        logits: Float[Tensor, "questions contexts vocabulary"],
        tokens: Int[Tensor, " questions"],
    ) -> Int[Tensor, " questions"]:
        """The context that a token came from.

        Under minimum entropy that is the chosen one. Any other pooling mixes contexts: then it is
        the one that thinks the token most probable, by its weight.
        """
        if self.merge.pooling == "min_entropy":
            return self._states[-1].chosen
        of_token = logits.gather(-1, tokens[:, None, None].expand(-1, self.contexts, 1))
        log_probs = of_token[..., 0].float() - logits.float().logsumexp(-1)
        if self.prior is not None:
            log_probs = log_probs + self.prior.to(log_probs).log()
        return log_probs.argmax(-1)

    def _of_a_call(self) -> list[MergeState]:
        if not self._states:
            raise ValueError("nothing has been generated yet; pass this to generate first")
        return self._states


def _pick(
    scores: Float[Tensor, "questions vocabulary"], do_sample: bool
) -> Int[Tensor, " questions"]:
    """One token a question."""
    if not do_sample:
        return scores.argmax(dim=-1)
    return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)


def _pad_token(config: GenerationConfig) -> int | None:
    """What finished questions get; the first end-of-text token if there is no other."""
    if config.pad_token_id is not None:
        return config.pad_token_id
    ends = config.eos_token_id
    return ends[0] if isinstance(ends, list) else ends


def _known_length(input_ids: Tensor, config: GenerationConfig, model_kwargs: dict[str, Any]) -> int:
    """Tokens of the rows, the cached ones included, as far as mask or configuration tell."""
    mask = model_kwargs.get("attention_mask")
    if mask is not None:
        return mask.shape[1]
    # A mask without padding is dropped by `generate`, which notes its length.
    return getattr(config, "_mask_length", input_ids.shape[1])
