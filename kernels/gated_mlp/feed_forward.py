"""`gated_mlp`: a whole feed-forward, which keeps its input and its projection and nothing else."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.kernels.autocast import cast_inputs
from ropewalk.kernels.backends import Backend, check_backend
from ropewalk.kernels.gated_mlp import validation
from ropewalk.kernels.gated_mlp.activation import Activation
from ropewalk.kernels.gated_mlp.composite import composite_output, is_small
from ropewalk.kernels.gated_mlp.eager import eager_output
from ropewalk.kernels.gated_mlp.op import gated_output_op
from ropewalk.kernels.gated_mlp.problem import Form, by_rows
from ropewalk.kernels.plain import check_transformable, is_plain, is_transformed


def gated_mlp(
    x: Float[Tensor, "*batch dim"],
    weight_in: Float[Tensor, "2*hidden dim"] | Float[Tensor, "hidden dim"],
    weight_out: Float[Tensor, "out hidden"],
    bias_in: Float[Tensor, " 2*hidden"] | Float[Tensor, " hidden"] | None = None,
    bias_out: Float[Tensor, " out"] | None = None,
    *,
    activation: Activation = "silu",
    gated: bool = True,
    backend: Backend = "auto",
) -> Float[Tensor, "*batch out"]:
    """A feed-forward, gated (SwiGLU, GEGLU, …) or plain (the GELU MLP of DiT and ViT).

        [gate, up] = x @ weight_inᵀ + bias_in        z = x @ weight_inᵀ + bias_in   if not gated
        y = (act(gate) · up) @ weight_outᵀ + bias_out   y = act(z) @ weight_outᵀ + bias_out

    Kept for the backward: x and the projection. What the second matrix is multiplied by is
    computed again in the pass that makes the projection's gradient, so that a gated feed-forward of
    width 2·hidden keeps 2·hidden numbers a token where torch's keeps 4·hidden, and a plain one
    hidden where torch's keeps 2·hidden. (On a CPU "auto" does so from a million numbers in the
    projection on, below that it is plain torch.) Between the products kernels compute in float32
    and round once; the reference is torch's own arithmetic.

    Differentiable as often as wanted, except under a compiler: once. Under `torch.func` (vmap,
    grad, jvp, …) and in forward differentiation it is computed in ordinary torch.

    Args:
        x: float16, bfloat16, float32 or float64, of any strides. Under `torch.autocast` all tensors
            are first cast to its dtype.
        weight_in: the first matrix, in the dtype of x; the rows of the gate come first.
        weight_out: the second matrix, in the dtype of x.
        bias_in: added to the projection.
        bias_out: added to the result.
        activation: "silu", "gelu" (exact), "gelu_tanh", "sigmoid", "relu" or "identity".
        gated: whether the projection is a gate and what it is multiplied with, or is activated as
            a whole.
        backend: "auto", "reference" or "triton"; see `ropewalk.kernels.gated_mlp.backend`.

    Returns:
        y, contiguous, in the dtype of x.

    Raises:
        ValueError: sizes, dtypes or devices that do not fit, an unknown activation, an impossible
            backend.
        TypeError: an argument of the wrong kind.

    Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202.

    Example:
        >>> weight_in, weight_out = torch.randn(2 * 172, 64), torch.randn(64, 172)
        >>> gated_mlp(torch.randn(8, 64), weight_in, weight_out).shape
        torch.Size([8, 64])
    """
    validation.check_kinds(x, weight_in, weight_out, bias_in, bias_out)
    x, weight_in, weight_out = cast_inputs(x, weight_in, weight_out)
    bias_in, bias_out = (None if b is None else cast_inputs(b)[0] for b in (bias_in, bias_out))
    validation.check_feed_forward(x, weight_in, weight_out, bias_in, bias_out, gated)
    validation.check_activation(activation)
    check_backend(backend)
    form = Form(activation, gated)
    if is_transformed():
        check_transformable(backend)
        return composite_output(
            functional.linear(x, weight_in, bias_in), weight_out, bias_out, form
        )
    # The first product is torch's own: its gradients, and x, which it keeps, are no one else's.
    projected = functional.linear(x, weight_in, bias_in)
    plain = is_plain(x, weight_in, weight_out, bias_in, bias_out)
    if plain and is_small(projected, backend):
        return composite_output(projected, weight_out, bias_out, form)
    rows = by_rows(projected)
    if plain:
        y = eager_output(rows, weight_out, bias_out, form, backend)
    else:
        y = gated_output_op(rows, weight_out, bias_out, activation, gated, backend)
    return y.reshape(*x.shape[:-1], weight_out.shape[0])
