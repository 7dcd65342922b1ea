"""The factors as one matrix, and products in ordinary torch: with it, and with the factors.

W[(l s), (k p)] = Σ_r L[l, s, (k r)] R[k, (l r), p]
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.kernels.monarch.activation import activate


def monarch_to_dense(
    right: Float[Tensor, "input_blocks output_blocks*rank input_size"],
    left: Float[Tensor, "output_blocks output_size input_blocks*rank"],
) -> Float[Tensor, "output_blocks*output_size input_blocks*input_size"]:
    """The matrix that `monarch_matmul(x, right, left)` multiplies by: x @ W.T.

    Args:
        right: R; real or complex, of any strides.
        left: L, of the same dtype.

    Returns:
        W, contiguous, in the dtype of the factors. Differentiable.

    Source: Dao et al., arXiv 2204.00595 §3, in the rectangular form of any rank.
    """
    blocks, size, _ = left.shape
    k, rows, p = right.shape
    rank = rows // blocks
    # One product for each slice (l, k): (s, r) by (r, p).
    slices = left.unflatten(-1, (k, rank)).transpose(1, 2) @ right.unflatten(
        1, (blocks, rank)
    ).transpose(0, 1)
    return slices.transpose(1, 2).reshape(blocks * size, k * p)


def dense_product(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    activation: str | None,
    block_major: bool,
) -> Tensor:
    """(tokens, k·p) by the merged matrix, in the layouts of `Problem`'s result."""
    y = functional.linear(x, monarch_to_dense(right, left), bias)
    y = activate(y, activation)
    if block_major:
        return y.unflatten(-1, left.shape[:2]).transpose(0, 1).contiguous()
    return y


def batched_product(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    activation: str | None,
    block_major: bool,
) -> Tensor:
    """(tokens, k·p) by the factors in ordinary torch, which everything of torch sees through.

    For complex numbers, `torch.func`, and few rows on a CPU.
    """
    (k, rows, p), (blocks, size, _) = right.shape, left.shape
    rank = rows // blocks
    hidden = x.unflatten(-1, (k, p)).transpose(0, 1) @ right.mT
    hidden = hidden.unflatten(-1, (blocks, rank)).permute(2, 1, 0, 3).flatten(2)
    y = hidden @ left.mT
    if bias is not None:
        y = y + bias.view(blocks, 1, size)
    y = activate(y, activation)
    return y.contiguous() if block_major else y.transpose(0, 1).flatten(1)
