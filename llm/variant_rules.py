"""The rules a variant can name: their parameters, and the defaults that depend on the model.

A rule's own dataclass says which parameters it has. Some of them have no universal default because
a good value follows from the length the model was trained at, L, or from the longest length it is
asked to read, N; those are the functions below, each with the words in which `ropewalk variants`
prints it. Sources: the window L/4 of ReRoPE, the slope 16 of Leaky ReRoPE (kexue.fm/archives/9708,
"best window L/4 … L/2"); the smallest group that keeps Self-Extend inside L (arXiv 2401.01325,
§3.2); chunk 3L/4 with an eighth of L kept local (dual chunk attention, arXiv 2402.17463).
"""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from math import ceil
from typing import Any

from ropewalk.blocks.rotary import DISTANCE_RULES, FREQUENCY_RULES, LogN

LOG_N = "log-n"
REQUIRED = "required"
KINDS = ("frequency", "distance", "log-n")


@dataclass(frozen=True)
class Lengths:
    """What a model-dependent default may look at.

    Attributes:
        trained: tokens the model was trained to read.
        longest: tokens it is asked to read; None when that is not known.
    """

    trained: int
    longest: int | None = None


@dataclass(frozen=True)
class ModelDefault:
    """A default that is computed from the model's lengths.

    Attributes:
        words: how the list of variants describes it.
        compute: from the lengths and the parameters that were given; None when it cannot be known.
    """

    words: str
    compute: Callable[[Lengths, Mapping[str, Any]], Any]


def _factor(lengths: Lengths, given: Mapping[str, Any]) -> float | None:
    return None if lengths.longest is None else max(1.0, lengths.longest / lengths.trained)


def _group(lengths: Lengths, given: Mapping[str, Any]) -> int:
    window = min(int(given["window"]), lengths.trained - 1)
    longest = lengths.longest or 8 * lengths.trained
    return max(1, ceil((longest - window) / (lengths.trained - window)))


FACTOR = ModelDefault("longest length / trained length", _factor)
ORIGINAL = ModelDefault("trained length", lambda lengths, given: lengths.trained)
WINDOW = ModelDefault("trained length / 4", lambda lengths, given: max(1, lengths.trained // 4))

# Order matters where a later default looks at an earlier parameter.
MODEL_DEFAULTS: dict[str, dict[str, ModelDefault]] = {
    **{
        name: {"factor": FACTOR}
        for name in (
            "linear",
            "ntk-aware",
            "ntk-fixed",
            "ntk-mixed",
            "dynamic-ntk",
            "yarn",
            "longrope",
            "llama3",
        )
    },
    "rerope": {"window": WINDOW},
    "leaky-rerope": {
        "window": WINDOW,
        "factor": ModelDefault("16", lambda lengths, given: 16.0),
    },
    "self-extend": {
        "window": WINDOW,
        "group": ModelDefault("smallest that keeps the longest length inside the trained", _group),
    },
    "dual-chunk": {
        "chunk": ModelDefault(
            "3/4 of the trained length", lambda lengths, given: max(2, 3 * lengths.trained // 4)
        ),
        "local": ModelDefault("chunk / 6", lambda lengths, given: max(1, int(given["chunk"]) // 6)),
    },
    LOG_N: {"length": ORIGINAL},
}


def rule_classes() -> dict[str, type]:
    """Every name a variant can contain, with the class it stands for."""
    return {**FREQUENCY_RULES, **DISTANCE_RULES, LOG_N: LogN}


def kind_of(name: str) -> str:
    """Which of `KINDS` a rule's name belongs to."""
    if name == LOG_N:
        return "log-n"
    return "frequency" if name in FREQUENCY_RULES else "distance"


def model_defaults(name: str) -> dict[str, ModelDefault]:
    """The defaults of `name` that depend on the model, among them any `original_length`."""
    defaults = dict(MODEL_DEFAULTS.get(name, {}))
    if "original_length" in parameter_types(name):
        defaults["original_length"] = ORIGINAL
    return defaults


def parameter_types(name: str) -> dict[str, type]:
    """Parameter → value type (`int`, `float`, `bool` or `tuple` for a list of numbers)."""
    rule = rule_classes()[name]
    hints = typing.get_type_hints(rule)
    return {field.name: _plain_type(hints[field.name]) for field in fields(rule) if field.init}


def _plain_type(hint: Any) -> type:
    """The type that is written in a variant's text for a field annotated with `hint`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not types.NoneType]
        plain = [_plain_type(option) for option in options]
        return float if float in plain else plain[0]
    origin = typing.get_origin(hint) or hint
    return origin if origin in (int, float, bool, str) else tuple


@dataclass(frozen=True)
class ParameterInfo:
    """One parameter of a rule, for `ropewalk variants`."""

    name: str
    type: str
    default: str


def describe_parameters(name: str) -> list[ParameterInfo]:
    """The parameters of a rule with their types and defaults in words."""
    rule = rule_classes()[name]
    dependent = model_defaults(name)
    described = []
    for field in fields(rule):
        if not field.init:
            continue
        if field.name in dependent:
            default = dependent[field.name].words
        elif field.default is not MISSING:
            default = str(field.default).lower() if field.default is not None else "derived"
        else:
            default = REQUIRED
        kind = parameter_types(name)[field.name]
        words = "numbers separated by /" if kind is tuple else kind.__name__
        described.append(ParameterInfo(field.name, words, default))
    return described


def paper_of(name: str) -> str:
    """Where a rule was published."""
    return str(getattr(rule_classes()[name], "paper", ""))
