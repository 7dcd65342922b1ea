"""`monarch_matmul`: rows times a Monarch matrix, by its two block-diagonal factors."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.autocast import cast_inputs
from ropewalk.kernels.backends import check_backend
from ropewalk.kernels.monarch import validation
from ropewalk.kernels.monarch.activation import Activation
from ropewalk.kernels.monarch.backend import BACKENDS, Backend
from ropewalk.kernels.monarch.break_even import fits_at_once, merged_from
from ropewalk.kernels.monarch.dense import batched_product, dense_product
from ropewalk.kernels.monarch.eager import eager_product
from ropewalk.kernels.monarch.op import monarch_op
from ropewalk.kernels.monarch.problem import Problem
from ropewalk.kernels.plain import is_plain, is_transformed


def monarch_matmul(
    x: Float[Tensor, "*batch input_blocks*input_size"],
    right: Float[Tensor, "input_blocks output_blocks*rank input_size"],
    left: Float[Tensor, "output_blocks output_size input_blocks*rank"],
    *,
    bias: Float[Tensor, " output_blocks*output_size"] | None = None,
    activation: Activation | None = None,
    block_major_output: bool = False,
    backend: Backend = "auto",
) -> (
    Float[Tensor, "*batch output_blocks*output_size"]
    | Float[Tensor, "output_blocks *batch output_size"]
):
    """Two products of small blocks in the place of one with a large matrix.

    With k input blocks of p features, l output blocks of s features and slices of rank r:

        h[b, k, (l r)] = Σ_i R[k, (l r), i] x[b, (k i)]
        y[b, (l s)]    = activation(Σ_(k r) L[l, s, (k r)] h[b, k, l, r] + bias[(l s)])

    r·(l·k·p + k·l·s) parameters, and twice that of operations a row. Output blocks are contiguous:
    feature l·s + j of y belongs to block l (the square form M = P L Pᵀ R of the paper, which ends
    in a permutation, interleaves them). The permutation between the products is no copy, but on a
    CPU for few rows or half precision, where a copy is the least.

    Sums are float32 for half precision; what lies between the products is rounded to the dtype of
    x. Kept for the backward: x, and h where the gradient of `left` or of an activation needs it.
    Can be differentiated once, in reverse; complex tensors, backend "dense" and all under
    `torch.func` (vmap, grad, jvp, …), which is computed in ordinary torch, as often as wanted.

    Args:
        x: float16, bfloat16, float32 or float64, of any strides; or complex. Under
            `torch.autocast` all tensors are first cast to its dtype.
        right: R, in the dtype of x.
        left: L, in the dtype of x.
        bias: added before the activation.
        activation: None, "relu", "gelu" (exact), "gelu_tanh" or "silu".
        block_major_output: give the output blocks as the first dimension, each of them contiguous,
            for what treats blocks apart: (l, *batch, s) is (heads, batch, seq, head_dim) if blocks
            are heads.
        backend: "auto", "reference", "triton" or "dense"; see `ropewalk.kernels.monarch.backend`.

    Returns:
        y, contiguous.

    Raises:
        ValueError: sizes, dtypes or devices that do not fit; an unknown activation; an impossible
            backend.
        TypeError: an argument of the wrong kind.

    Source: Dao et al., Monarch: Expressive Structured Matrices, arXiv 2204.00595 §3; the form for
    rectangles and ranks also in kexue.fm/archives/10249.

    Example:
        >>> x = torch.randn(8, 12)
        >>> right = torch.randn(3, 2 * 5, 4)  # 3 blocks of 4 features, 2 output blocks, rank 5
        >>> left = torch.randn(2, 7, 3 * 5)   # of 7 features
        >>> monarch_matmul(x, right, left).shape
        torch.Size([8, 14])
    """
    if bias is None:
        x, right, left = cast_inputs(x, right, left)
    else:
        x, right, left, bias = cast_inputs(x, right, left, bias)
    validation.check_tensors(x, right, left, bias)
    validation.check_options(activation, block_major_output, x)
    check_backend(backend, BACKENDS)
    batch, (k, _, p), (blocks, size, _) = x.shape[:-1], right.shape, left.shape
    rows = x.reshape(-1, k * p)
    product = _in_ordinary_torch(rows, right, left, backend)
    keep_hidden = _keeps_hidden(rows, right, left, bias, activation)
    if product is not None:
        y = product(rows, right, left, bias, activation, block_major_output)
    elif is_plain(rows, right, left, bias):
        problem = Problem(
            rows.unflatten(-1, (k, p)), right, left, bias, activation, block_major_output
        )
        y = eager_product(problem, keep_hidden, backend)
    else:
        y, _ = monarch_op(
            rows.unflatten(-1, (k, p)), right, left, bias, activation, block_major_output,
            keep_hidden, backend,
        )  # fmt: skip
    shape = (blocks, *batch, size) if block_major_output else (*batch, blocks * size)
    return y.reshape(shape)


def _in_ordinary_torch(
    rows: Tensor, right: Tensor, left: Tensor, backend: str
) -> Callable[..., Tensor] | None:
    """The product that is no operator, if there is to be none."""
    if backend == "dense":
        return dense_product
    if is_transformed():
        # An operator has no rule for them, and its tangent would be zero without a word.
        if backend == "triton":
            raise ValueError(
                "backend: expected 'auto', 'reference' or 'dense' under torch.func, whose "
                "transforms Triton kernels do not have, got 'triton'"
            )
        return batched_product
    if backend == "auto" and not torch.compiler.is_exporting():  # for any number of rows
        least = merged_from(right, left)
        if least is not None and rows.shape[0] >= least:
            return dense_product
        if fits_at_once(rows.shape[0], right, left):
            return batched_product
    return batched_product if rows.is_complex() else None


def _keeps_hidden(
    x: Tensor, right: Tensor, left: Tensor, bias: Tensor | None, activation: str | None
) -> bool:
    """Whether a backward is to come that needs what lies between the products."""
    if not torch.is_grad_enabled():
        return False
    if activation is None:
        return left.requires_grad
    return any(t.requires_grad for t in (x, right, left, bias) if t is not None)
