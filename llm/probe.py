"""Finding out by experiment what each attention layer of a model does with its rotary position.

Five tokens go through the model three times, with the attention replaced by zeros so that a layer's
input does not depend on what the layers before did with their queries:

    unit      cos = 1, sin = 0        → queries and keys before the rotation
    native    the model's own         → queries and keys after it
    poison    cos = sin = NaN         → who else uses the rotation?

The layout is the one whose rotation turns the first into the second. This proves, rather than
assumes, that a layer's rotation can be taken out and put back: a norm with learned weights after
the rotation, another sign or an unknown layout fit no candidate, and a layer that never reaches
the attention interface shows in the output. Nothing is left changed.
"""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ropewalk.kernels.rotary import LAYOUTS, Layout, rotate
from ropewalk.llm.journal import Journal
from ropewalk.llm.mask_plan import is_plan, make_plan, plan_window
from ropewalk.llm.model_config import text_config
from ropewalk.llm.native_rotary import RotarySlot
from ropewalk.llm.rotary_wrapper import RotaryFormat

PROBE_NAME = "ropewalk_probe"
# Positions far from 0, where slow planes have turned too, so that two frequency sets differ.
POSITIONS = range(100, 105)

INSTEAD = "only frequency rules that do not depend on the length can be plugged into it"

Mode = Literal["unit", "native", "poison"]


@dataclass(frozen=True)
class LayerRotation:
    """What the probe found of one attention layer.

    Attributes:
        slot: the rotation it uses; None for a layer without rotary position.
        layout: which dimensions are pairs.
        trailing: whether the rotated dimensions are the last of a head.
        sliding_window: of the mask it is given.
    """

    slot: RotarySlot | None
    layout: Layout = "half"
    trailing: bool = False
    sliding_window: int | None = None


@dataclass
class ProbeResult:
    """What the probe found.

    Attributes:
        layers: of every attention layer that reaches the interface.
        formats: of every rotary module that was called, by path and layer type.
    """

    layers: dict[nn.Module, LayerRotation] = field(default_factory=dict)
    formats: dict[str, dict[str | None, RotaryFormat]] = field(default_factory=dict)


class _Seen(NamedTuple):
    query: Tensor
    key: Tensor
    mask: Tensor | None
    position_ids: Tensor | None


_recording: ContextVar[dict[nn.Module, _Seen] | None] = ContextVar("ropewalk_probe", default=None)


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
        seen[module] = _Seen(query, key, attention_mask, position_ids)
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


class _SpyRotary(nn.Module):
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


def probe(model: nn.Module, slots: list[RotarySlot]) -> ProbeResult:
    """Runs the model three times on five tokens.

    Args:
        model: whose text configuration is its own (`ConfigCopies`).
        slots: its rotations.

    Raises:
        ValueError: the rotation of some layer cannot be taken out and put back; says why.
    """
    AttentionInterface.register(PROBE_NAME, _probe_attention)
    AttentionMaskInterface.register(PROBE_NAME, make_plan)
    (unit, spies, _), (native, after, expected), (poison, _, output) = (
        _run(model, slots, mode) for mode in ("unit", "native", "poison")
    )
    if not expected.isfinite().all():
        raise ValueError(
            f"{type(model).__name__} gives outputs that are not finite; are its weights loaded?"
        )
    # Written so that NaN counts as different.
    poisoned = not (output - expected).norm() <= _tolerance(expected) * expected.norm()
    names = {module: name for name, module in model.named_modules()}
    if not native:
        raise ValueError(
            f"{type(model).__name__} never calls transformers' attention interface, so its "
            f"attention cannot be replaced; {INSTEAD}"
        )
    if poisoned:
        raise ValueError(
            f"{type(model).__name__} uses its rotary position in layers that never reach "
            f"transformers' attention interface, so their attention cannot be replaced; {INSTEAD}"
        )
    result = ProbeResult(formats={path: spy.formats for path, spy in spies.items() if spy.formats})
    now = [slot.of(after[slot.path].native) for slot in slots if slot.path in result.formats]
    for module, seen in native.items():
        _check_inputs(names[module], module, seen)
        window = None if seen.mask is None else plan_window(seen.mask)
        if not poison[module].query.isnan().any() and not poison[module].key.isnan().any():
            result.layers[module] = LayerRotation(None, sliding_window=window)
            continue
        match = _match(names[module], module, unit[module], seen, now)
        slot = next(
            s for s in slots if (s.path, s.layer_type) == (match[0].path, match[0].layer_type)
        )
        result.layers[module] = LayerRotation(slot, match[1], match[2], window)
    return result


def _run(
    model: nn.Module, slots: list[RotarySlot], mode: Mode
) -> tuple[dict[nn.Module, _Seen], dict[str, _SpyRotary], Tensor]:
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    weight = embedding.weight
    ids = torch.arange(1, 1 + len(POSITIONS), device=weight.device) % weight.shape[0]
    positions = torch.tensor([list(POSITIONS)], device=weight.device)
    spies = {slot.path: _SpyRotary(slot.module, mode) for slot in slots}
    seen: dict[nn.Module, _Seen] = {}
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
def _temporarily(model: nn.Module, spies: dict[str, _SpyRotary]) -> Iterator[None]:
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


def _check_inputs(name: str, module: nn.Module, seen: _Seen) -> None:
    if not getattr(module, "is_causal", True):
        raise ValueError(
            f"{name} is not causal, and distance rules are defined for keys that come before the "
            "query only"
        )
    if seen.mask is None or seen.mask.ndim != 4:
        raise ValueError(
            f"{name} gets no mask from transformers' mask interface, so which keys it may see is "
            "unknown"
        )
    if not is_plan(seen.mask):
        raise ValueError(
            f"{name} attends in a pattern that is neither causal nor a sliding window (chunks, for "
            "example), in which the positions of cached keys are unknown"
        )
    if seen.mask.shape[-1] != seen.key.shape[-2] + seen.query.shape[-2]:
        raise ValueError(f"{name} changes its mask before it reaches the attention interface")
    if seen.position_ids is None or seen.position_ids.ndim != 2:
        raise ValueError(
            f"{name} does not hand position_ids to its attention function, so the positions of its "
            "queries are unknown there"
        )
    if not seen.query.isfinite().all():
        raise ValueError(f"{name} has queries that are not finite; are the model's weights loaded?")


def _match(
    name: str, module: nn.Module, before: _Seen, after: _Seen, slots: list[RotarySlot]
) -> tuple[RotarySlot, Layout, bool]:
    """The rotation, layout and place that turn the queries and keys before into those after."""
    fits: list[tuple[float, RotarySlot, Layout, bool]] = []
    head_dim = after.query.shape[-1]
    for slot, layout, trailing in itertools.product(slots, LAYOUTS, (False, True)):
        rotary_dim = 2 * slot.frequencies.shape[0]
        if rotary_dim > head_dim or (trailing and rotary_dim == head_dim):
            continue
        error = max(
            _error(b, a, slot, layout, head_dim - rotary_dim if trailing else 0)
            for b, a in ((before.query, after.query), (before.key, after.key))
        )
        if error <= _tolerance(after.query):
            fits.append((error, slot, layout, trailing))
    if not fits:
        raise ValueError(
            f"{name} ({type(module).__name__}) does more with its queries and keys than a rotation "
            "in a known layout, or does something after the rotation (such as a norm with learned "
            "weights), so the rotation cannot be put off to the attention function"
        )
    own_type = getattr(module, "layer_type", None)
    own = [fit for fit in fits if fit[1].layer_type is not None and fit[1].layer_type == own_type]
    _, slot, layout, trailing = min(own or fits, key=lambda fit: fit[0])
    return slot, layout, trailing


def _tolerance(x: Tensor) -> float:
    """Relative error that rounding explains; another layout is off by tens of per cent."""
    return 1e-3 if x.dtype in (torch.float32, torch.float64) else 3e-2


def _error(before: Tensor, after: Tensor, slot: RotarySlot, layout: Layout, start: int) -> float:
    """Relative error of rotating `before`, dimensions from `start` on, against `after`.

    Measured on the rotated dimensions alone; dimensions outside must not have changed at all.
    """
    before, after = before.to(torch.float64), after.to(torch.float64)
    stop = start + 2 * slot.frequencies.shape[0]
    if not torch.equal(before[..., :start], after[..., :start]):
        return torch.inf
    if not torch.equal(before[..., stop:], after[..., stop:]):
        return torch.inf
    positions = torch.tensor(list(POSITIONS), dtype=torch.float32, device=before.device)
    angles = positions[:, None] * slot.frequencies.to(before.device)
    cos, sin = angles.cos() * slot.factor, angles.sin() * slot.factor
    turned = rotate(before[..., start:stop].contiguous(), cos, sin, layout=layout)
    return float((turned - after[..., start:stop]).norm() / after[..., start:stop].norm())
