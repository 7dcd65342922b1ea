"""What every launch that computes tiles of logits is told about them."""

from math import gcd
from typing import Any, Literal

from torch import Tensor

from ropewalk.kernels.launching import arithmetic
from ropewalk.kernels.linear_cross_entropy.problem import Problem
from ropewalk.kernels.linear_cross_entropy.triton.configurations import (
    GROUP,
    Configuration,
    configuration,
)
from ropewalk.kernels.linear_cross_entropy.triton.layout import Matrix
from ropewalk.kernels.sizes import ceil_divide


def logits_configuration(
    kernel: Literal["statistics", "gradient"], hidden: Matrix, weight: Matrix
) -> Configuration:
    """How a kernel that computes the logits of these matrices runs."""
    x = hidden.tensor
    awkward = any(m.transposed or m.unit * x.itemsize < 16 for m in (hidden, weight))
    return configuration(kernel, x.shape[0], x.dtype, x.device, awkward=awkward)


def programs(how: Configuration, tokens: int, columns: int) -> tuple[int]:
    """The grid of a kernel with a program for each tile."""
    return (ceil_divide(tokens, how.rows) * ceil_divide(columns, how.columns),)


def logits_arguments(
    problem: Problem,
    hidden: Matrix,
    weight: Matrix,
    targets: Tensor,
    bias: Tensor | None,
    sum_weights: Tensor | None,
    how: Configuration,
) -> dict[str, Any]:
    """Arguments by name of a kernel that computes the logits of some tokens and columns.

    Args:
        problem: for what concerns all of them.
        hidden: of these tokens, as `targets`.
        weight: of these columns, as `bias` and `sum_weights`.
        how: the kernel's configuration.
    """
    p, dim_unit = problem, gcd(16, max(problem.dim, 1))
    return {
        "hidden": hidden.tensor,
        "weight": weight.tensor,
        "targets": targets,
        "bias": None if bias is None else bias.contiguous(),
        "sum_weights": None if sum_weights is None else sum_weights.contiguous(),
        "tokens": hidden.tensor.shape[0],
        "vocabulary": weight.tensor.shape[0],
        "dims": p.dim // dim_unit,
        "hidden_stride": hidden.stride,
        "weight_stride": weight.stride,
        "logit_scale": p.logit_scale,
        "softcap": 1.0 if p.softcap is None else p.softcap,
        "ROWS": how.rows,
        "COLUMNS": how.columns,
        "DEPTH": how.depth,
        "GROUP": GROUP,
        "HIDDEN_TRANSPOSED": hidden.transposed,
        "WEIGHT_TRANSPOSED": weight.transposed,
        "HIDDEN_UNIT": hidden.unit,
        "WEIGHT_UNIT": weight.unit,
        "DIM_UNIT": dim_unit,
        "EVEN": p.dim % how.depth == 0,
        "BIAS": bias is not None,
        "CAP": p.softcap is not None,
        "SUM": sum_weights is not None,
        **how.launch(),
        **arithmetic(p.hidden.dtype),
    }
