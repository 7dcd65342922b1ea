"""Contexts that a model has read: their tokens, and the keys and values of each where possible."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ropewalk.llm.nbce.devices import input_device
from ropewalk.llm.plug import plug_of


@dataclass(frozen=True, eq=False)
class States:
    """Keys and values of consecutive tokens in one layer, without padding."""

    keys: Float[Tensor, "heads tokens key_dim"]
    values: Float[Tensor, "heads tokens value_dim"]

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.keys, self.values))

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        return self.keys.nbytes + self.values.nbytes


# States layer by layer; None for a layer that keeps none, such as one that reads another's keys.
LayerStates = list[States | None]


@dataclass(frozen=True, eq=False)
class Kept:
    """Keys and values of everything that was read.

    Attributes:
        devices: where each layer of the model wants them.
        base: of the tokens that all contexts share.
        contexts: of each context's own tokens.
    """

    devices: list[torch.device]
    base: LayerStates
    contexts: list[LayerStates]

    @property
    def nbytes(self) -> int:
        """Memory they take."""
        kept = (self.base, *self.contexts)
        return sum(states.nbytes for layers in kept for states in layers if states is not None)


@dataclass(frozen=True)
class ReadBy:
    """Which model read the contexts, and in what state, so that no other is asked about them."""

    model: Callable[[], Any]
    dtype: torch.dtype
    device: torch.device
    rules: tuple[Any, ...] | None

    @classmethod
    def of(cls, model: Any) -> "ReadBy":
        """The model as it is now."""
        return cls(weakref.ref(model), model.dtype, input_device(model), plugged_rules(model))

    def refuse_others(self, model: Any) -> None:
        """Another model, or the same one changed so that its keys are of no use any more.

        Raises:
            ValueError: says what is different.
        """
        now = ReadBy.of(model)
        if self.model() is not model:
            raise ValueError(
                f"these contexts were read by another model than this {type(model).__name__}; "
                "encode them again with this one"
            )
        if self.rules != now.rules:
            raise ValueError(
                f"these contexts were read with {_rules_text(self.rules)} and the model now has "
                f"{_rules_text(now.rules)}, under which the cached keys mean something else; "
                "encode them again"
            )
        if (self.dtype, self.device) != (now.dtype, now.device):
            raise ValueError(
                f"these contexts were read in {self.dtype} on {self.device} and the model is now "
                f"in {now.dtype} on {now.device}; encode them again"
            )


@dataclass(frozen=True, eq=False)
class EncodedContexts:
    """Contexts read once, about which any number of questions can be asked.

    Made by `NBCE.encode`; asking changes nothing in it.

    Attributes:
        names: of the contexts, in order.
        tokens: of each context, without what is shared.
        base: tokens that every row begins with: the tokenizer's own (such as a beginning-of-text
            token) and the prefix.
        ending: tokens that every question ends with: what a chat template puts there.
        read_by: the model that read them.
        kept: keys and values; None where the model's cache cannot be cut up, and then every
            question is read together with the contexts again.
    """

    names: tuple[str, ...]
    tokens: list[list[int]] = field(repr=False)
    base: list[int] = field(repr=False)
    ending: list[int] = field(repr=False)
    read_by: ReadBy = field(repr=False)
    kept: Kept | None = field(repr=False, default=None)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def reusable(self) -> bool:
        """Whether the contexts need not be read again for a question."""
        return self.kept is not None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each context, without what is shared."""
        return tuple(map(len, self.tokens))

    @property
    def nbytes(self) -> int:
        """Memory that the keys and values take."""
        return 0 if self.kept is None else self.kept.nbytes

    @property
    def bytes_per_token(self) -> int:
        """Memory that the keys and values of one token take in all layers."""
        return self.nbytes // max(1, len(self.base) + sum(self.lengths))


def plugged_rules(model: nn.Module) -> tuple[Any, ...] | None:
    """What is plugged into a model; None for nothing."""
    handle = plug_of(model)
    return None if handle is None else (handle.frequency, handle.distance, handle.log_n)


def _rules_text(rules: tuple[Any, ...] | None) -> str:
    if rules is None:
        return "nothing plugged"
    return " + ".join(str(rule) for rule in rules if rule is not None) + " plugged"
