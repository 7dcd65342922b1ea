"""`gated_activation`: one half of a projection, activated, times the other."""

from jaxtyping import Float
from torch import Tensor

from ropewalk.kernels.backends import Backend, check_backend
from ropewalk.kernels.gated_mlp import validation
from ropewalk.kernels.gated_mlp.activation import Activation
from ropewalk.kernels.gated_mlp.composite import composite_activation, is_small
from ropewalk.kernels.gated_mlp.eager import eager_activation
from ropewalk.kernels.gated_mlp.op import gated_activation_op
from ropewalk.kernels.gated_mlp.problem import Form, by_rows
from ropewalk.kernels.plain import check_transformable, is_plain, is_transformed


def gated_activation(
    projected: Float[Tensor, "*batch 2*hidden"],
    *,
    activation: Activation = "silu",
    backend: Backend = "auto",
) -> Float[Tensor, "*batch hidden"]:
    """act(gate) · up of the halves [gate, up] of a projection: SwiGLU with "silu".

    One read of the projection and one write of the result; the backward reads the projection and
    the gradient and writes the projection's gradient. Kept for the backward: the projection (by
    "auto" on a CPU from a million numbers on, below that it is plain torch). Kernels compute in
    float32 and round once; the reference is torch's own arithmetic.

    Differentiable as often as wanted, except under a compiler: once. Under `torch.func` (vmap,
    grad, jvp, …) and in forward differentiation it is computed in ordinary torch.

    Args:
        projected: float16, bfloat16, float32 or float64, of any strides; the gate comes first.
        activation: of the gate: "silu" (SwiGLU), "gelu" (GEGLU, exact), "gelu_tanh", "sigmoid"
            (GLU), "relu" (ReGLU) or "identity" (bilinear).
        backend: "auto", "reference" or "triton"; see `ropewalk.kernels.gated_mlp.backend`.

    Returns:
        The gated features, contiguous, in the dtype of `projected`.

    Raises:
        ValueError: an odd width, a dtype without a fraction, an unknown activation, an impossible
            backend.
        TypeError: an argument of the wrong kind.

    Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202.

    Example:
        >>> gated_activation(torch.randn(4, 100, 2 * 64)).shape
        torch.Size([4, 100, 64])
    """
    validation.check_projected(projected)
    validation.check_activation(activation)
    check_backend(backend)
    form = Form(activation, True)
    if is_transformed():
        check_transformable(backend)
        return composite_activation(projected, form)
    plain = is_plain(projected)
    if plain and is_small(projected, backend):
        return composite_activation(projected, form)
    rows = by_rows(projected)
    if plain:
        y = eager_activation(rows, form, backend)
    else:
        y = gated_activation_op(rows, activation, True, backend)
    return y.reshape(*projected.shape[:-1], y.shape[-1])
