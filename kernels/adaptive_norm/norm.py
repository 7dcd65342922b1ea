"""`adaptive_norm`, `gated_adaptive_norm` and `gated_residual`: the chain between two sublayers.

A block of a diffusion transformer is x += gate · sublayer(norm(x) · (1 + scale) + shift), twice. So
between the products of one sublayer and the next lie a gated sum, a norm and a modulation: one op,
which reads the stream and the branch once and writes the new stream and what the next sublayer
takes. The first norm of a model has no branch, and the last sum may have no norm.

Memory: a norm written in torch keeps its input, the normed values and their statistics, the gated
sum its branch. Here only the residual and the branch are kept, and two numbers for a token.

Source: Peebles & Xie, Scalable Diffusion Models with Transformers, arXiv 2212.09748 §3.2 (adaLN).
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.kernels.adaptive_norm import validation
from ropewalk.kernels.adaptive_norm.composite import composite
from ropewalk.kernels.adaptive_norm.eager import eager
from ropewalk.kernels.adaptive_norm.op import adaptive_norm_op
from ropewalk.kernels.adaptive_norm.problem import Norm, Problem
from ropewalk.kernels.autocast import cast_inputs
from ropewalk.kernels.backends import Backend, check_backend
from ropewalk.kernels.plain import check_transformable, is_plain, is_transformed

Stream = Float[Tensor, "batch tokens dim"]
Rows = Float[Tensor, "samples dim"]


def adaptive_norm(
    x: Stream,
    shift: Rows | None = None,
    scale: Rows | None = None,
    *,
    norm: Norm = "layer",
    weight: Float[Tensor, " dim"] | None = None,
    bias: Float[Tensor, " dim"] | None = None,
    eps: float = 1e-6,
    cu_seqlens: Int[Tensor, " samples+1"] | None = None,
    backend: Backend = "auto",
) -> Stream:
    """A norm whose scale and shift are each sample's own: y = norm(x) · (1 + scale) + shift.

    Statistics and sums are float32 (float64 for float64), and what comes out is rounded once. For
    the backward x is kept, with two numbers for a token; the normed values are computed again.

    Args:
        x: float32, bfloat16, float16 or float64, of any strides. Under `torch.autocast` it is
            first cast to its dtype.
        shift: one row for each sample, or one for all; None for 0. In the dtype of x or float32
            and of any strides: the chunks of one (samples, 6·dim) are read where they lie.
        scale: the same; the normed values are multiplied by 1 + scale.
        norm: "layer", (x − mean) / √(variance + eps), or "rms", x / √(mean square + eps).
        weight: of the norm itself, before the modulation; None for 1.
        bias: of the norm itself; None for 0.
        eps: what keeps the norm of nothing from dividing by zero.
        cu_seqlens: (samples + 1,) int32 or int64, for a batch of 1 in which samples of any
            lengths lie one after another: where each begins, and the number of tokens.
        backend: "auto", "reference" or "triton"; see `ropewalk.kernels.adaptive_norm.backend`.

    Returns:
        y, contiguous, in the dtype of x.

    Raises:
        ValueError: sizes, dtypes or devices that do not fit; an unknown norm; an impossible
            backend; packed samples that are none.
        TypeError: an argument of the wrong kind.

    Example:
        >>> shift, scale = torch.randn(8, 2 * 1152).chunk(2, dim=1)
        >>> adaptive_norm(torch.randn(8, 256, 1152), shift, scale).shape
        torch.Size([8, 256, 1152])
    """
    validation.check_norm(norm, eps)
    _, y = _chain(x, None, None, shift, scale, weight, bias, cu_seqlens, norm, eps, backend)
    return cast("Tensor", y)


def gated_adaptive_norm(
    x: Stream,
    branch: Stream,
    gate: Rows | None,
    shift: Rows | None = None,
    scale: Rows | None = None,
    *,
    norm: Norm = "layer",
    weight: Float[Tensor, " dim"] | None = None,
    bias: Float[Tensor, " dim"] | None = None,
    eps: float = 1e-6,
    cu_seqlens: Int[Tensor, " samples+1"] | None = None,
    backend: Backend = "auto",
) -> tuple[Stream, Stream]:
    """A gated sum and the adaptive norm of it, in one pass.

    residual = x + gate · branch and y = norm(residual) · (1 + scale) + shift.

    y is computed from the residual as it is rounded to its dtype, forward and backward alike: it
    is what `adaptive_norm(gated_residual(x, branch, gate), shift, scale)` gives. For the backward
    the residual is kept and, where the gate's gradient needs it, the branch; x is not.

    Args:
        x: the residual stream; see `adaptive_norm`.
        branch: what a sublayer gave; of the shape and dtype of x, of any strides.
        gate: one row for each sample, or one for all, as shift and scale; None for 1.
        shift: see `adaptive_norm`, as are all that follow.
        scale: see `adaptive_norm`.
        norm: see `adaptive_norm`.
        weight: see `adaptive_norm`.
        bias: see `adaptive_norm`.
        eps: see `adaptive_norm`.
        cu_seqlens: see `adaptive_norm`.
        backend: see `adaptive_norm`.

    Returns:
        The new residual stream, and what the next sublayer takes.

    Raises:
        ValueError: as `adaptive_norm`.
        TypeError: as `adaptive_norm`.
    """
    validation.check_norm(norm, eps)
    validation.check_tensor("branch", branch)
    found = _chain(x, branch, gate, shift, scale, weight, bias, cu_seqlens, norm, eps, backend)
    return cast("tuple[Tensor, Tensor]", found)


def gated_residual(
    x: Stream,
    branch: Stream,
    gate: Rows | None,
    *,
    cu_seqlens: Int[Tensor, " samples+1"] | None = None,
    backend: Backend = "auto",
) -> Stream:
    """A gated sum, x + gate · branch: the end of a chain, where no norm follows.

    For the backward the branch is kept where the gate's gradient needs it, and nothing else.

    Args:
        x: the residual stream; see `adaptive_norm`.
        branch: what a sublayer gave; of the shape and dtype of x, of any strides.
        gate: one row for each sample, or one for all; None for 1.
        cu_seqlens: see `adaptive_norm`.
        backend: see `adaptive_norm`.

    Returns:
        The new residual stream, contiguous.

    Raises:
        ValueError: as `adaptive_norm`.
        TypeError: as `adaptive_norm`.
    """
    validation.check_tensor("branch", branch)
    found, _ = _chain(x, branch, gate, None, None, None, None, cu_seqlens, None, 0.0, backend)
    return cast("Tensor", found)


def _chain(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    cu_seqlens: Tensor | None,
    norm: str | None,
    eps: float,
    backend: str,
) -> tuple[Tensor | None, Tensor | None]:
    check_backend(backend)
    validation.check_tensor("x", x)
    if branch is None:
        (x,) = cast_inputs(x)
    else:
        x, branch = cast_inputs(x, branch)
    validation.check_stream(x, branch)
    gate, shift, scale, weight, bias = (
        _cast(rows, x) for rows in (gate, shift, scale, weight, bias)
    )
    validation.check_samples(x, cu_seqlens, gate=gate, shift=shift, scale=scale)
    validation.check_affine(x, weight=weight, bias=bias)
    samples = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    gate, shift, scale = (
        rows if rows is None or rows.shape[0] == samples else rows.expand(samples, x.shape[2])
        for rows in (gate, shift, scale)
    )
    given = (x, branch, gate, shift, scale, weight, bias, cu_seqlens)
    if is_transformed():
        check_transformable(backend)
        return composite(Problem(*given, norm, float(eps)))
    if is_plain(*given):
        return eager(Problem(*given, norm, float(eps)), backend)
    return adaptive_norm_op(*given, norm, float(eps), backend)[:2]


def _cast(rows: Tensor | None, x: Tensor) -> Tensor | None:
    """Float32 may stay as it is, whatever autocast makes of x."""
    if not isinstance(rows, Tensor) or rows.dtype == x.dtype or rows.dtype == torch.float32:
        return rows
    return cast_inputs(rows)[0]
