"""What is refused, and in which words: expected, got, and how to mend it."""

import math
from typing import get_args

import torch
from torch import Tensor

from ropewalk.kernels.linear_cross_entropy.reduction import Reduction

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATS = "float16, bfloat16, float32 or float64"


def check_tensors(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    """Kinds, ranks and sizes; dtypes of the floats are checked after autocast has had its say."""
    for name, x in (("hidden", hidden), ("weight", weight), ("targets", targets)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if hidden.ndim < 1:
        raise ValueError("hidden: expected (..., dim), got a scalar; pass the hidden states")
    if weight.ndim != 2 or weight.shape[0] == 0:
        raise ValueError(
            f"weight: expected (vocabulary, dim), got {tuple(weight.shape)}; pass the output "
            "embedding, one row a token of the vocabulary"
        )
    if hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"hidden: expected a last dimension of {weight.shape[1]}, the weight's, got "
            f"{hidden.shape[-1]}; weight is (vocabulary, dim) as in nn.Linear, not transposed"
        )
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets: expected {tuple(hidden.shape[:-1])}, one for each hidden state, got "
            f"{tuple(targets.shape)}"
        )
    kind = targets.dtype
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise ValueError(
            f"targets: expected integer indices into the vocabulary, got {kind}; use .long(); "
            "distributions over the vocabulary need the logits, F.cross_entropy takes them"
        )
    if bias is not None:
        if not isinstance(bias, Tensor):
            raise TypeError(f"bias: expected a tensor or None, got {type(bias).__name__}")
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias: expected ({weight.shape[0]},), one for each row of weight, got "
                f"{tuple(bias.shape)}"
            )
    for name, x in (("weight", weight), ("targets", targets), ("bias", bias)):
        if x is not None and x.device != hidden.device:
            raise ValueError(
                f"{name}: expected on {hidden.device} as hidden is, got {x.device}; move it there"
            )


def check_dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """One floating-point dtype for all."""
    if hidden.dtype not in DTYPES:
        raise ValueError(f"hidden: expected {FLOATS}, got {hidden.dtype}")
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None and x.dtype != hidden.dtype:
            raise ValueError(
                f"{name}: expected {hidden.dtype} as hidden is, got {x.dtype}; cast one of them, "
                "or run under torch.autocast"
            )


def check_options(
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    logit_scale: float,
    reduction: str,
) -> None:
    """Numbers in their ranges, and a reduction that exists."""
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int, got {type(ignore_index).__name__}")
    for name, number in (
        ("label_smoothing", label_smoothing), ("z_loss", z_loss), ("logit_scale", logit_scale),
        ("softcap", softcap),
    ):  # fmt: skip
        if number is None and name == "softcap":
            continue
        if isinstance(number, bool) or not isinstance(number, int | float):
            mend = "; a learned factor can multiply hidden" if isinstance(number, Tensor) else ""
            raise TypeError(f"{name}: expected a number, got {type(number).__name__}{mend}")
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing: expected 0 ≤ ε < 1, got {label_smoothing}")
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"z_loss: expected a factor of at least 0, such as 1e-4, got {z_loss}")
    if not -math.inf < logit_scale < math.inf:
        raise ValueError(f"logit_scale: expected a finite number, got {logit_scale}")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(
            f"softcap: expected a positive number such as 30.0, or None for no cap, got {softcap}"
        )
    if reduction not in get_args(Reduction):
        raise ValueError(
            f"reduction: expected one of {', '.join(get_args(Reduction))}, got {reduction!r}"
        )


def check_switches(**switches: bool) -> None:
    """On or off: a string that says "no" would be on."""
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise TypeError(f"{name}: expected True or False, got {type(switch).__name__}")


def check_weight_per_class(weight: Tensor | None, vocabulary: int, hidden: Tensor) -> None:
    """One constant a token of the vocabulary."""
    if weight is None:
        return
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight_per_class: expected a tensor, got {type(weight).__name__}")
    if weight.shape != (vocabulary,) or not weight.dtype.is_floating_point:
        raise ValueError(
            f"weight_per_class: expected ({vocabulary},) floating-point, one for each token of the "
            f"vocabulary, got {tuple(weight.shape)} {weight.dtype}"
        )
    if weight.requires_grad:
        raise ValueError(
            "weight_per_class: expected constants, got a tensor that requires a gradient, which "
            "it would not receive; pass .detach()"
        )
    if weight.device != hidden.device:
        raise ValueError(
            f"weight_per_class: expected on {hidden.device} as hidden is, got {weight.device}; "
            "move it there"
        )


def check_shift(hidden: Tensor) -> None:
    """A sequence to shift."""
    if hidden.ndim < 2 or hidden.shape[-2] == 0:
        raise ValueError(
            f"hidden: expected (..., seq, dim) with at least one token for shift=True, got "
            f"{tuple(hidden.shape)}"
        )
