"""Running a model with spies in place of its rotary modules and its attention; see `probe`.

The attention is replaced by zeros, so that a layer's input does not depend on what the layers
before did with their queries, and every rotary module by one that returns, in the same form,

    unit      cos = 1, sin = 0
    native    what the module itself returns
    poison    cos = sin = NaN

Nothing is left changed.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ropewalk.llm.journal import Journal
from ropewalk.llm.mask_plan import make_plan
from ropewalk.llm.model_config import text_config
from ropewalk.llm.native_rotary import RotarySlot
from ropewalk.llm.rotary_wrapper import RotaryFormat

PROBE_NAME = "ropewalk_probe"
# Positions far from 0, where slow planes have turned too, so that two frequency sets differ.
POSITIONS = range(100, 105)

INSTEAD = "only frequency rules that do not depend on the length can be plugged into it"

Mode = Literal["unit", "native", "poison"]


class Seen(NamedTuple):
    """What one attention layer was called with."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    position_ids: Tensor | None


_recording: ContextVar[dict[nn.Module, Seen] | None] = ContextVar("ropewalk_probe", default=None)


def _probe_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Records its arguments and returns zeros."""
    seen = _recording.get()
    if seen is not None:
        seen[module] = Seen(query, key, attention_mask, position_ids)
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


class SpyRotary(nn.Module):
    """Runs a copy of a rotary module and returns its result, or ones, or NaN, of that form."""

    def __init__(self, native: nn.Module, mode: Mode) -> None:
        super().__init__()
        # A copy, because length-dependent modules remember the longest context they saw.
        self.native = copy.deepcopy(native)
        self.mode = mode
        self.formats: dict[str | None, RotaryFormat] = {}

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if position_ids.ndim != 2:
            raise ValueError(
                f"rotary positions have {position_ids.ndim} axes (mRoPE), and no rule here is "
                "defined for that; only models with one position per token can be plugged"
            )
        named = {} if layer_type is None else {"layer_type": layer_type}
        result = self.native(x, position_ids, **named)
        if isinstance(result, Tensor) and result.is_complex():
            self.formats[layer_type] = RotaryFormat(result.shape[-1], complex=True)
            if self.mode == "unit":
                return torch.ones_like(result)
            return torch.full_like(result, torch.nan) if self.mode == "poison" else result
        if not (isinstance(result, tuple) and len(result) == 2):
            raise ValueError(
                f"{type(self.native).__name__} returns neither (cos, sin) nor a complex tensor, "
                "so its rotation cannot be taken out"
            )
        cos, sin = result
        self.formats[layer_type] = RotaryFormat(cos.shape[-1])
        if self.mode == "unit":
            return torch.ones_like(cos), torch.zeros_like(sin)
        if self.mode == "poison":
            return torch.full_like(cos, torch.nan), torch.full_like(sin, torch.nan)
        return cos, sin


def register() -> None:
    """Makes the attention function of the spies and its masks known to transformers."""
    AttentionInterface.register(PROBE_NAME, _probe_attention)
    AttentionMaskInterface.register(PROBE_NAME, make_plan)


def run_with_spies(
    model: nn.Module, slots: list[RotarySlot], mode: Mode
) -> tuple[dict[nn.Module, Seen], dict[str, SpyRotary], Tensor]:
    """Runs the model on five tokens at `POSITIONS`.

    Args:
        model: whose text configuration is its own (`ConfigCopies`).
        slots: its rotations.
        mode: what its rotary modules return.

    Returns:
        What each attention layer was called with, the spy at each path, and the model's output.

    Raises:
        ValueError: the model cannot be run so.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    weight = embedding.weight
    ids = torch.arange(1, 1 + len(POSITIONS), device=weight.device) % weight.shape[0]
    positions = torch.tensor([list(POSITIONS)], device=weight.device)
    spies = {slot.path: SpyRotary(slot.module, mode) for slot in slots}
    seen: dict[nn.Module, Seen] = {}
    with _temporarily(model, spies):
        token = _recording.set(seen)
        try:
            with torch.no_grad():
                output = model(input_ids=ids[None], position_ids=positions, use_cache=False)
        except ValueError:
            raise
        except Exception as error:
            # Whatever it is (a mask used by other code, an argument that does not exist), it would
            # come up again with every use of the plugged model.
            raise ValueError(
                f"{type(model).__name__} cannot be run as model(input_ids, position_ids, "
                "use_cache=False) with transformers' attention interface, by which its attention "
                f"would be replaced: {error}; {INSTEAD}"
            ) from error
        finally:
            _recording.reset(token)
    return seen, spies, output[0]


@contextmanager
def _temporarily(model: nn.Module, spies: dict[str, SpyRotary]) -> Iterator[None]:
    """Spies for rotaries, the probe for attention, no dropout."""
    journal = Journal()
    try:
        for module in model.modules():
            journal.set(module, "training", False)
        journal.set(text_config(model), "_attn_implementation_internal", PROBE_NAME)
        for path, spy in spies.items():
            parent, _, name = path.rpartition(".")
            journal.set(model.get_submodule(parent), name, spy)
        yield
    finally:
        journal.undo()
