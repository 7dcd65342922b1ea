"""A model's forward passes while it generates, each one token further.

transformers prepares the inputs of each step: which tokens are new to the cache, mask, positions,
and what an architecture wants besides. How that is asked for has changed between its versions 5, so
it stands here and nowhere else.
"""

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationMixin

_PREPARE = inspect.signature(vars(GenerationMixin)["prepare_inputs_for_generation"]).parameters


class Steps:
    """Runs the model on a growing batch.

    Args:
        model: a causal language model.
        tokens: all tokens of the rows, or only those that are not in the cache yet.
        known: how many tokens the rows have, the cached ones included.
        model_kwargs: what `generate` hands to its loop: cache, mask, positions and more.
    """

    def __init__(
        self,
        model: Any,
        tokens: Int[Tensor, "rows sequence"],
        known: int,
        model_kwargs: dict[str, Any],
    ) -> None:
        self.tokens = tokens
        self._model = model
        self._kwargs = dict(model_kwargs)
        cache = model_kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        self._new: int | None = (
            tokens.shape[1] - past if past and known == tokens.shape[1] else None
        )
        self._first = True
        if "cache_position" in _PREPARE and self._kwargs.get("cache_position") is None:
            # Earlier versions told the model where in the cache the tokens belong.
            count = self._new or tokens.shape[1]
            self._kwargs["cache_position"] = torch.arange(past, past + count, device=tokens.device)

    @property
    def cache(self) -> Any:
        """The cache as it is now, None if there is none."""
        return self._kwargs.get("past_key_values", self._kwargs.get("cache_params"))

    def next_logits(self) -> Float[Tensor, "rows vocabulary"]:
        """Logits of the token after the last one."""
        options: dict[str, Any] = {"is_first_iteration": self._first}
        if "next_sequence_length" in _PREPARE:
            caching = self._kwargs.get("use_cache")
            options["next_sequence_length"] = self._new if self._first or not caching else 1
        inputs = self._model.prepare_inputs_for_generation(self.tokens, **options, **self._kwargs)
        outputs = self._model(**inputs, return_dict=True)
        positions = self._kwargs.get("position_ids")
        self._kwargs = self._model._update_model_kwargs_for_generation(
            outputs, self._kwargs, is_encoder_decoder=False
        )
        if positions is not None and self._kwargs.get("position_ids") is positions:
            # Earlier versions left positions that were given as they were.
            last = positions[..., -1:] + 1
            self._kwargs["position_ids"] = torch.cat([positions, last], dim=-1)
        self._first = False
        return outputs.logits[:, -1]

    def append(self, tokens: Int[Tensor, " rows"]) -> None:
        """Adds a token to every row."""
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=-1)
