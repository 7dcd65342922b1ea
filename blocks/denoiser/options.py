"""The options of a `DiffusionTransformer`: their types, and what is refused."""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import torch

from ropewalk.blocks.checks import require_integer, require_positive
from ropewalk.blocks.denoiser.block import NORMS, NormKind
from ropewalk.blocks.denoiser.feed_forward import FEED_FORWARDS, FeedForwardKind
from ropewalk.blocks.denoiser.mixers import RECURRENCES, MixerKind, Recurrence
from ropewalk.blocks.denoiser.modulation import ADALN, AdaLN

Rotary = Literal["axial", "absolute", "none"]
ROTARY: tuple[Rotary, ...] = ("axial", "absolute", "none")
MIXERS = ("attention", "recurrent", "hybrid")
NAME = "DiffusionTransformer"


class Options(TypedDict, total=False):
    """Keyword arguments of `DiffusionTransformer`, where its docstring explains them."""

    mixer: Literal["attention", "recurrent", "hybrid"] | Sequence[MixerKind]
    feed_forward: FeedForwardKind
    feed_forward_width: int | None
    nblocks: int
    recurrence: Recurrence
    rotary: Rotary
    rotary_base: float
    qk_norm: bool
    norm: NormKind
    norm_eps: float | tuple[float, float]
    adaln: AdaLN
    adaln_rank: int | None
    num_classes: int
    learn_sigma: bool
    registers: int
    vocabulary: int | None
    out_channels: int | None
    bias: bool
    time_steps: int | None
    time_frequency_shift: int
    embed_condition_per_block: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


DEFAULTS: dict[str, Any] = {
    "mixer": "attention",
    "feed_forward": "swiglu",
    "feed_forward_width": None,
    "nblocks": 4,
    "recurrence": "gru",
    "rotary": "axial",
    "rotary_base": 100.0,
    "qk_norm": False,
    "norm": "layer",
    "norm_eps": 1e-6,
    "adaln": "full",
    "adaln_rank": None,
    "num_classes": 0,
    "learn_sigma": False,
    "registers": 0,
    "vocabulary": None,
    "out_channels": None,
    "bias": True,
    "time_steps": None,
    "time_frequency_shift": 0,
    "embed_condition_per_block": False,
    "device": None,
    "dtype": None,
}


def completed(given: dict[str, Any], depth: int) -> dict[str, Any]:
    """All options, checked as far as they can be without the sizes.

    Raises:
        TypeError: an option that does not exist, or one of the wrong kind.
        ValueError: a value out of its range.
    """
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise TypeError(
            f"{NAME}: unexpected options {', '.join(unknown)}; it has {', '.join(DEFAULTS)}"
        )
    options = DEFAULTS | given
    choices: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("feed_forward", FEED_FORWARDS),
        ("recurrence", RECURRENCES),
        ("rotary", ROTARY),
        ("norm", NORMS),
        ("adaln", ADALN),
    )
    for name, known in choices:
        if options[name] not in known:
            raise ValueError(
                f"{NAME}.{name}: expected one of {', '.join(known)}, got {options[name]!r}"
            )
    require_integer(NAME, 1, nblocks=options["nblocks"])
    require_integer(NAME, 0, num_classes=options["num_classes"], registers=options["registers"])
    for name in ("feed_forward_width", "adaln_rank", "vocabulary", "out_channels", "time_steps"):
        if options[name] is not None:
            require_integer(NAME, 1, **{name: options[name]})
    if options["time_frequency_shift"] not in (0, 1):
        raise ValueError(
            f"{NAME}.time_frequency_shift: expected 0 or 1, got {options['time_frequency_shift']!r}"
        )
    flags = ("qk_norm", "learn_sigma", "bias", "embed_condition_per_block")
    for name in flags:
        if not isinstance(options[name], bool):
            raise TypeError(f"{NAME}.{name}: expected True or False, got {options[name]!r}")
    eps = options["norm_eps"]
    options["norm_eps"] = tuple(eps) if isinstance(eps, tuple | list) else (eps, eps)
    if len(options["norm_eps"]) != 2:
        raise ValueError(f"{NAME}.norm_eps: expected one number or two, got {eps!r}")
    for value in options["norm_eps"]:
        require_positive(NAME, norm_eps=value)
    options["mixer"] = _mixers(options["mixer"], depth)
    if options["vocabulary"] is not None and (options["learn_sigma"] or options["out_channels"]):
        raise ValueError(
            f"{NAME}: expected no learn_sigma and no out_channels beside a vocabulary, whose "
            "output is a logit for each token"
        )
    if options["learn_sigma"] and options["out_channels"] is not None:
        raise ValueError(
            f"{NAME}: expected learn_sigma, which makes 2·channels of output, or out_channels, "
            "got both"
        )
    return options


def _mixers(mixer: str | Sequence[str], depth: int) -> tuple[MixerKind, ...]:
    """The mixer of each block."""
    if isinstance(mixer, str):
        if mixer not in MIXERS:
            raise ValueError(f"{NAME}.mixer: expected one of {', '.join(MIXERS)}, got {mixer!r}")
        if mixer != "hybrid":
            return (mixer,) * depth  # pyright: ignore[reportReturnType]
        return tuple("attention" if i % 2 else "recurrent" for i in range(depth))
    names = tuple(mixer) if isinstance(mixer, Sequence) else ()
    if len(names) != depth or not set(names) <= {"attention", "recurrent"}:
        raise ValueError(
            f"{NAME}.mixer: expected a name, or 'attention' or 'recurrent' for each of {depth} "
            f"blocks, got {mixer!r}"
        )
    return names  # pyright: ignore[reportReturnType]
