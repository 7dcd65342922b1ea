"""Other sizes than the trained one: a frequency rule for each axis, by how much that axis grew.

A model that has seen grids of 16 × 16 reads one of 32 × 32 with frequencies for twice the length on
each axis; of 16 × 32 on the second only. The rules are the library's own for long contexts. Their
promise, that fast planes may stay as they are because training saw all their angles, does not hold
on grids of a few cells: NTK then reads angles that were never trained, and "yarn" interpolates all
planes, as it should those that made no full turn.
Sources: FiT, arXiv 2402.12376 §3.3, and FiTv2, arXiv 2410.13925, for NTK and YaRN on two axes.
"""

import math
from collections.abc import Callable, Sequence

from ropewalk.blocks.rotary import Default, FrequencyRule, Linear, NTKAware, YaRN

AxisRule = Callable[[float, int], FrequencyRule]


def _yarn(factor: float, trained: int) -> FrequencyRule:
    """YaRN; its ramp, whose ends are whole planes, would keep the fastest plane on any grid."""
    return YaRN(factor, original_length=trained) if trained >= 2 * math.pi else Linear(factor)


RULES: dict[str, AxisRule] = {
    "none": lambda factor, trained: Default(),
    "linear": lambda factor, trained: Linear(factor),
    "ntk": lambda factor, trained: NTKAware(factor),
    "yarn": _yarn,
}


def axis_rules(
    rule: str | AxisRule, grid: Sequence[int], trained: Sequence[int], pairs: Sequence[int]
) -> tuple[FrequencyRule, ...]:
    """The frequency rule of each axis.

    Args:
        rule: "none", "linear", "ntk" or "yarn", or a function of (factor, trained cells) that gives
            a frequency rule.
        grid: cells along each axis.
        trained: the same at the trained size. Axes that did not grow keep their frequencies.
        pairs: of dimensions, that each axis has.

    Raises:
        ValueError: an unknown name, or a rule that needs more pairs than an axis has.
        TypeError: neither a name nor a function, or a function that gives something else.
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {rule!r}")
        make = RULES[rule]
    elif callable(rule):
        make = rule
    else:
        raise TypeError(
            f"rule: expected a name, or a function of (factor, trained cells) that gives a "
            f"frequency rule, got {rule!r}"
        )
    rules: list[FrequencyRule] = []
    for cells, known, own in zip(grid, trained, pairs, strict=True):
        of_axis = make(cells / known, known) if cells > known else Default()
        if not isinstance(of_axis, FrequencyRule):
            raise TypeError(f"rule: expected it to give a frequency rule, got {of_axis!r}")
        if 2 * own < of_axis.minimum_rotary_dim:
            raise ValueError(
                f"rule: expected one for {own} pair(s) of dimensions, which is what an axis of "
                f"this model has, got {rule!r}, which needs {of_axis.minimum_rotary_dim // 2} to "
                "tell fast from slow; take 'linear'"
            )
        rules.append(of_axis)
    return tuple(rules)
