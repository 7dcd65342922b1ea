"""The grammar of variants: `name:key=value,key=value` joined with `+`.

    rope                              the model as it is
    ntk-aware:factor=8                a frequency rule
    rerope:window=1024+log-n          a distance rule and log n scaling
    ntk-mixed:factor=4+rerope+log-n   one of each

A variant has at most one frequency rule, one distance rule and one `log-n`. Parameters that are
left out take the rule's own default, or one that follows from the model's trained length; see
`ropewalk.llm.variant_rules`. `attention_scaling` may be written `attention_factor`, as in the
configurations of checkpoints. `rope` adds nothing, so that a checkpoint which was trained with a
variant of its own (the key `ropewalk` of its config.json) runs with that one.
"""

import difflib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

from ropewalk.llm.variant_rules import (
    REQUIRED,
    Lengths,
    describe_parameters,
    kind_of,
    model_defaults,
    parameter_types,
    rule_classes,
)

if TYPE_CHECKING:
    from torch import nn

    from ropewalk.blocks.rotary import FrequencyRule, LogN
    from ropewalk.kernels.rotary_attention.protocols import DistanceRule

ROPE = "rope"
# Other names of parameters, as the configurations of checkpoints write them.
ALIASES = {"attention_factor": "attention_scaling"}
# Positions are 32-bit in kernels; no length, window or group can be larger.
INTEGER_BOUND = 2**31
# A variant is tried out on these lengths when it is parsed, so that a bad value is found at once.
TRIAL_LENGTHS = Lengths(trained=4096, longest=32768)


@dataclass(frozen=True)
class Part:
    """One rule of a variant, with the parameters that were written.

    Attributes:
        name: the rule's name.
        parameters: pairs of parameter and value, in the order they were written.
    """

    name: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def build(self, lengths: Lengths) -> Any:
        """The rule itself, with model-dependent defaults filled in.

        Raises:
            ValueError: a parameter is missing, or the rule refuses a value.
        """
        given = dict(self.parameters)
        for parameter, default in model_defaults(self.name).items():
            if parameter not in given:
                value = default.compute(lengths, given)
                if value is None:
                    raise ValueError(
                        f"{self.name!r} needs {parameter!r} because {default.words} is not known; "
                        f"write for example {self.name}:{parameter}=8"
                    )
                given[parameter] = value
        try:
            return rule_classes()[self.name](**given)
        except TypeError as error:
            missing = [
                parameter.name
                for parameter in describe_parameters(self.name)
                if parameter.default == REQUIRED and parameter.name not in given
            ]
            raise ValueError(f"{self.name!r} needs {' and '.join(missing)}") from error
        except OverflowError as error:
            raise ValueError(
                f"{self.name!r} has a value that is too large to compute with"
            ) from error


@dataclass(frozen=True)
class ResolvedVariant:
    """A variant with every value settled; `None` leaves the model's own in place.

    Attributes:
        frequency: which rotary frequencies.
        distance: which relative position a score sees.
        log_n: query scale by position.
        text: the variant as it was written.
    """

    frequency: "FrequencyRule | None"
    distance: "DistanceRule | None"
    log_n: "LogN | None"
    text: str

    def plug(self, model: "nn.Module") -> AbstractContextManager[Any]:
        """Plugs the variant into `model`; a context manager that unplugs it on leaving.

        Raises:
            ValueError: the model cannot run the variant; nothing has been changed then.
        """
        if self.frequency is None and self.distance is None and self.log_n is None:
            return nullcontext(model)
        from ropewalk.llm import plug

        return plug(
            model, frequency=self.frequency, distance=self.distance, log_n_length=self.log_n
        )

    def describe(self) -> dict[str, Any]:
        """Rule names and all their parameters, as plain data for a run's file."""
        parts: dict[str, Any] = {}
        for kind, rule in (
            ("frequency", self.frequency),
            ("distance", self.distance),
            ("log_n", self.log_n),
        ):
            if rule is not None:
                name = getattr(rule, "name", None)
                parts[kind] = ({"name": name} if name else {}) | asdict(rule)  # type: ignore[arg-type]
        return parts


@dataclass(frozen=True)
class Variant:
    """A parsed variant: which rules, and which of their parameters were written.

    Attributes:
        frequency: the frequency rule, if one was named.
        distance: the distance rule, if one was named.
        log_n: log n scaling, if it was named.
        text: the variant as it was written.
    """

    frequency: Part | None
    distance: Part | None
    log_n: Part | None
    text: str

    def over(self, native: "Variant") -> "Variant":
        """This variant laid over the one a model was trained with: parts not named here stay."""
        return replace(
            self,
            frequency=self.frequency or native.frequency,
            distance=self.distance or native.distance,
            log_n=self.log_n or native.log_n,
        )

    def resolve(self, trained_length: int, longest_length: int | None = None) -> ResolvedVariant:
        """Settles every parameter.

        Args:
            trained_length: tokens the model was trained to read.
            longest_length: tokens it will be asked to read; gives the factor of frequency rules.

        Raises:
            ValueError: a value cannot be known or is refused by its rule.
        """
        lengths = Lengths(trained_length, longest_length)
        built = [
            part.build(lengths) if part is not None else None
            for part in (self.frequency, self.distance, self.log_n)
        ]
        return ResolvedVariant(built[0], built[1], built[2], self.text)

    def plug(
        self, model: "nn.Module", longest_length: int | None = None
    ) -> AbstractContextManager[Any]:
        """Resolves the variant for `model` and plugs it in; see `ResolvedVariant.plug`."""
        from ropewalk.llm import trained_length

        return self.resolve(trained_length(model), longest_length).plug(model)


def parse_variant(text: str) -> Variant:
    """Reads a variant such as `"rerope:window=1024+log-n"`.

    Raises:
        ValueError: an unknown rule or parameter (with the known ones and the nearest), a value of
            the wrong type or one the rule refuses, or two rules of the same kind.
    """
    parts: dict[str, Part] = {}
    for piece in text.split("+"):
        name, _, written = (side.strip() for side in piece.partition(":"))
        known = (ROPE, *rule_classes())
        if name not in known:
            raise ValueError(f"unknown variant {name!r}{nearest(name, known)}")
        if name == ROPE:
            if written:
                raise ValueError(f"'rope' has no parameters, got {written!r}")
            continue
        kind = kind_of(name)
        if kind in parts:
            raise ValueError(
                f"variant {text!r} has two parts of kind {kind}, "
                f"{parts[kind].name!r} and {name!r}; keep one"
            )
        parts[kind] = Part(name, tuple(_parameters(name, written).items()))
        try:
            _check_finite(name, parts[kind].build(TRIAL_LENGTHS))
        except ValueError as error:
            raise ValueError(f"variant {text!r}: {error}") from error
    return Variant(parts.get("frequency"), parts.get("distance"), parts.get("log-n"), text.strip())


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown `name`: the nearest known one, then all of them.

    Case, `-` and `_` do not count, so that class names such as `NTKAware` find their rule; a name
    that is the beginning of a known one means the first such.
    """
    known = list(known)
    plain = {_plain(candidate): candidate for candidate in reversed(known)}
    begun = [key for key in reversed(plain) if len(name) > 1 and key.startswith(_plain(name))]
    close = begun or difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.5)
    suggestion = f"; did you mean {plain[close[0]]!r}?" if close else ";"
    return f"{suggestion} known: {', '.join(known)}"


def _plain(name: str) -> str:
    """A name without what people write differently."""
    return name.lower().replace("-", "").replace("_", "")


def _check_finite(name: str, rule: Any) -> None:
    """Raises ValueError for a frequency rule that gives frequencies no model could run with."""
    if kind_of(name) != "frequency":
        return
    # Rules with a list of numbers are defined for one dimension only.
    lists = [value for value in vars(rule).values() if isinstance(value, (tuple, list))]
    rotary_dim = 2 * len(lists[0]) if lists else 64
    try:
        found = rule.inverse_frequencies(rotary_dim, 1e4, TRIAL_LENGTHS.longest)
        factor = float(rule.attention_factor(TRIAL_LENGTHS.longest))
    except (OverflowError, ValueError) as error:
        message = f"{name!r} has a value that is too large or too small: {error}"
        raise ValueError(message) from error
    if not (bool(found.isfinite().all()) and isfinite(factor)):
        raise ValueError(f"{name!r} has a value that makes its frequencies infinite")


def _parameters(name: str, written: str) -> dict[str, Any]:
    """Parses `key=value,key=value` for the rule `name`."""
    types = parameter_types(name)
    parameters: dict[str, Any] = {}
    for assignment in filter(None, (piece.strip() for piece in written.split(","))):
        key, equals, value = (piece.strip() for piece in assignment.partition("="))
        if ALIASES.get(key) in types:
            key = ALIASES[key]
        if key not in types:
            if not types:
                raise ValueError(f"{name!r} has no parameters, got {key!r}")
            raise ValueError(f"{name!r} has no parameter {key!r}{nearest(key, types)}")
        if key in parameters:
            raise ValueError(f"{name!r} has parameter {key!r} twice; keep one")
        if not equals or not value:
            raise ValueError(f"parameter {key!r} of {name!r} has no value; write {key}=…")
        parameters[key] = _value(name, key, value, types)
    return parameters


def _value(name: str, key: str, value: str, types: Mapping[str, type]) -> Any:
    """Converts one value to the type its parameter has."""
    kind = types[key]
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[value.lower()]
        if kind is tuple:
            return tuple(float(number) for number in value.split("/"))
        number = kind(value)
    except (KeyError, ValueError):
        expected = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            tuple: "numbers separated by /",
        }[kind]
        raise ValueError(
            f"parameter {key!r} of {name!r} expects {expected}, got {value!r}"
        ) from None
    if kind is int and abs(number) >= INTEGER_BOUND:
        raise ValueError(f"parameter {key!r} of {name!r} must be below 2**31, got {value}")
    return number
