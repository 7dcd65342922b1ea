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

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ropewalk.kernels.rotary import LAYOUTS, Layout, rotate
from ropewalk.llm.mask_plan import is_plan, plan_window
from ropewalk.llm.native_rotary import RotarySlot
from ropewalk.llm.probe_run import INSTEAD, POSITIONS, Seen, register, run_with_spies
from ropewalk.llm.rotary_wrapper import RotaryFormat


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


def probe(model: nn.Module, slots: list[RotarySlot]) -> ProbeResult:
    """Runs the model three times on five tokens.

    Args:
        model: whose text configuration is its own (`ConfigCopies`).
        slots: its rotations.

    Raises:
        ValueError: the rotation of some layer cannot be taken out and put back; says why.
    """
    register()
    (unit, spies, _), (native, after, expected), (poison, _, output) = (
        run_with_spies(model, slots, mode) for mode in ("unit", "native", "poison")
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


def _check_inputs(name: str, module: nn.Module, seen: Seen) -> None:
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
    name: str, module: nn.Module, before: Seen, after: Seen, slots: list[RotarySlot]
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
