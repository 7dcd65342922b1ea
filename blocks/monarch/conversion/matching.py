"""Which layers of a model a pattern means.

A pattern is a glob on qualified names, `model.layers.3.mlp.up_proj`, in which `*` also goes over
dots. It finds layers; containers and activations that it also fits are no layers and do not count.
Matrices that belong to no layer, as mixtures of experts hold theirs, are found too, so that the
report says that they stayed dense.
"""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from ropewalk.blocks.monarch.conversion.dense import is_layer

# Children by which adapters hold the layer that they change; they read its weight to merge.
WRAPPED = ("base_layer", "original_module")

Match = str | Sequence[str] | Callable[[str, nn.Module], bool]


@dataclass(frozen=True, eq=False)
class Found:
    """A layer, or a matrix without one.

    Attributes:
        name: the first name that it has in the model; with the parameter's, if it is no layer.
        module: the layer, or the module that holds the matrix.
        names: all names of the module.
        parameter: name of the matrix in the module, if that is no layer.
    """

    name: str
    module: nn.Module
    names: tuple[str, ...]
    parameter: str | None = None


def find(model: nn.Module, match: Match) -> list[Found]:
    """What `match` means, in the order of the model; each module once, whatever it is called.

    Raises:
        ValueError: a pattern that finds nothing; the names that there are, nearest first.
        TypeError: neither patterns nor a function.
    """
    everything = list(_everything(model))
    if callable(match):
        chosen = [
            found for found in everything if any(match(name, found.module) for name in found.names)
        ]
        if not chosen:
            raise ValueError(
                f"match: expected a function that is true for some layer of "
                f"{type(model).__name__}, got one that is false for all; {_names(everything)}"
            )
        return chosen
    patterns = _patterns(match)
    for pattern in patterns:
        if not any(_fits(found, pattern) for found in everything):
            raise ValueError(
                f"match: expected a pattern that fits a layer of {type(model).__name__}, got "
                f"{pattern!r}, which fits none; {_names(everything, pattern)}"
            )
    return [found for found in everything if any(_fits(found, each) for each in patterns)]


def _patterns(match: str | Sequence[str]) -> list[str]:
    if isinstance(match, str):
        return [match]
    if not isinstance(match, Sequence) or not all(isinstance(each, str) for each in match):
        raise TypeError(
            'match: expected a pattern such as "*.mlp.*", several of them, or a function of name '
            f"and module, got {match!r}"
        )
    if not match:
        raise ValueError('match: expected a pattern such as "*.mlp.*", got none')
    return list(match)


def _fits(found: Found, pattern: str) -> bool:
    names = [*found.names]
    if found.parameter is not None:
        names += [f"{name}.{found.parameter}".lstrip(".") for name in found.names]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _everything(model: nn.Module) -> Iterator[Found]:
    """All layers, and all matrices that belong to none."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for module, called in names.items():
        if is_layer(module):
            yield Found(called[0], module, tuple(called))
            continue
        for key, parameter in module._parameters.items():
            if parameter is None or nn.parameter.is_lazy(parameter) or parameter.ndim < 2:
                continue
            name = f"{called[0]}.{key}".lstrip(".")
            yield Found(called[0] if key == "weight" else name, module, tuple(called), key)


def _names(everything: list[Found], pattern: str = "") -> str:
    """The names there are, numbers left out, those like the pattern first."""
    names = [found.name for found in everything if found.parameter is None]
    split = [name.rpartition(".") for name in names]
    wrappers = tuple(f"{above}." for above, dot, last in split if dot and last in WRAPPED)
    # What adapters hold is no layer to convert.
    names = [name for name in names if not name.startswith(wrappers)]
    general = list(
        dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", name) for name in names)
    )
    if not general:
        return "it has no linear layer"
    words = re.findall(r"\w{2,}", pattern.lower())
    listed = sorted(general, key=lambda name: -_likeness(words, name.lower()))
    rest = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return f"its layers are {', '.join(listed[:8])}{rest}"


def _likeness(words: list[str], name: str) -> float:
    """How much each word is like the part of a name that is most like it, in all."""
    parts = name.split(".")
    return sum(
        max(difflib.SequenceMatcher(None, word, part).ratio() for part in parts) for word in words
    )
