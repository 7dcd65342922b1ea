"""Checks of numbers and switches."""

import math
from numbers import Real

import torch

from ropewalk.kernels.rotary_attention.kinds import is_integer


def check_options(
    scale: float | None,
    sliding_window: int | None,
    softcap: float | None,
    *,
    causal: bool,
    deterministic: bool | None = None,
    return_logsumexp: bool = False,
) -> None:
    """Finite scale, positive window and cap, switches that are True or False."""
    for name, switch in (("causal", causal), ("return_logsumexp", return_logsumexp)):
        if not isinstance(switch, bool):
            raise TypeError(f"{name} must be True or False, got {switch!r}")
    if not (deterministic is None or isinstance(deterministic, bool)):
        raise TypeError(
            f"deterministic must be True, False or None, which follows torch's own setting, "
            f"got {deterministic!r}"
        )
    for name, number in (("scale", scale), ("softcap", softcap)):
        if not (number is None or _is_real(number)):
            raise TypeError(
                f"{name} must be a number, got {number!r}; convert it with float(…), or pass None"
            )
    if scale is not None and not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    if sliding_window is not None and not is_integer(sliding_window):
        raise TypeError(
            f"sliding_window must be an integer number of keys, got {sliding_window!r}; convert it "
            f"with int(…), or pass None for no window"
        )
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window must be at least 1, got {sliding_window}")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(
            f"softcap must be positive and finite, got {softcap}; pass None for no cap"
        )


def _is_real(thing: object) -> bool:
    """Python's, numpy's, or a traced number; True is none here."""
    numbers = (int, float, torch.SymInt, torch.SymFloat, Real)
    return not isinstance(thing, bool) and isinstance(thing, numbers)
