"""Checks of the rotary embedding, the distance rule and log n."""

from torch import Tensor

from ropewalk.kernels.rotary_attention.kinds import (
    DISTANCE_RULE,
    ROTARY,
    has,
    is_integer,
    kind,
)
from ropewalk.kernels.rotary_attention.protocols import DistanceRule, QueryScale, Rotary


def check_rotary(rotary: Rotary | None, head_dim: int, branches: int) -> None:
    """Rotary dimension and layout; without a rotary a rule of several branches means nothing."""
    if rotary is None:
        if branches > 1:
            raise ValueError(
                f"expected a rotary for a distance rule of {branches} branches, got None; "
                f"such a rule rotates by itself, so pass the RotaryEmbedding and unrotated tensors"
            )
        return
    if not has(rotary, ROTARY):
        raise TypeError(
            f"rotary must have rotary_dim, layout, inverse_frequencies and attention_factor, as "
            f"RotaryEmbedding has, got {kind(rotary)}; or rotate beforehand and pass rotary=None"
        )
    if rotary.rotary_dim % 2 or not 0 < rotary.rotary_dim <= head_dim:
        raise ValueError(
            f"rotary_dim must be even, positive and at most head_dim {head_dim}, "
            f"got {rotary.rotary_dim}"
        )
    if rotary.layout not in ("half", "interleaved"):
        raise ValueError(f"layout must be 'half' or 'interleaved', got {rotary.layout!r}")


def check_frequencies(frequencies: Tensor, rotary_dim: int) -> None:
    """Shape of the inverse frequencies; learned ones would silently get no gradient."""
    if frequencies.shape != (rotary_dim // 2,):
        raise ValueError(
            f"inverse_frequencies must have shape ({rotary_dim // 2},) for rotary_dim "
            f"{rotary_dim}, got {tuple(frequencies.shape)}"
        )
    if frequencies.requires_grad:
        raise ValueError(
            "inverse_frequencies must not require a gradient, because this op has none for them; "
            "rotate the queries and keys beforehand and pass rotary=None, or detach them"
        )


def check_attention_factor(factor: Tensor | float) -> None:
    """A number; a learned one would silently get no gradient."""
    if not isinstance(factor, Tensor):
        return
    if factor.numel() != 1:
        raise ValueError(
            f"attention_factor must be one number, got a tensor of shape {tuple(factor.shape)}"
        )
    if factor.requires_grad:
        raise ValueError(
            "attention_factor must not require a gradient, because this op has none for it; "
            "multiply the queries by it, or detach it"
        )


def check_rule(rule: DistanceRule, *, causal: bool) -> None:
    """Branches, edges and unit of a distance rule."""
    if not has(rule, DISTANCE_RULE):
        raise TypeError(
            f"distance must have branches, edges and unit, as ReRoPE(window=…) has, "
            f"got {kind(rule)}"
        )
    if len(rule.edges) != len(rule.branches) - 1:
        raise ValueError(
            f"a distance rule needs one edge fewer than branches, got {len(rule.edges)} edges "
            f"and {len(rule.branches)} branches"
        )
    if not all(is_integer(number) for number in (rule.unit, *rule.edges)):
        raise TypeError(
            f"a distance rule's unit and edges must be integers, got unit {rule.unit!r} and edges "
            f"{tuple(rule.edges)}; convert them with int(…)"
        )
    if rule.unit < 1 or any(edge < 1 for edge in rule.edges):
        raise ValueError(
            f"a distance rule's unit and edges (its window) must be at least 1, "
            f"got unit {rule.unit} and edges {tuple(rule.edges)}"
        )
    if any(b <= a for a, b in zip(rule.edges[:-1], rule.edges[1:], strict=True)):
        raise ValueError(f"a distance rule's edges must ascend, got {tuple(rule.edges)}")
    if len(rule.branches) > 1 and not causal:
        raise ValueError(
            f"a distance rule of {len(rule.branches)} branches is defined for keys that come "
            f"before the query only, got causal=False; pass causal=True or the plain rule"
        )


def check_log_n(log_n: QueryScale | None) -> None:
    """A function of positions."""
    if log_n is not None and (isinstance(log_n, type) or not callable(log_n)):
        raise TypeError(
            f"log_n must be a function of positions such as LogN(length=512), got {kind(log_n)}"
        )
