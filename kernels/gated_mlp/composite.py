"""The same in ordinary torch: for torch.func, forward differentiation, gradients of gradients."""

from torch import Tensor
from torch.nn import functional

from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.gated_mlp.activation import FUNCTIONS
from ropewalk.kernels.gated_mlp.problem import Form


def composite_activation(projected: Tensor, form: Form) -> Tensor:
    """The activated features of (…, width); rounded once."""
    function = FUNCTIONS[form.activation]
    z = projected.to(wide(projected.dtype))
    if form.gated:
        gate, up = z.chunk(2, dim=-1)
        activated = function(gate) * up
    else:
        activated = function(z)
    return activated.to(projected.dtype)


def composite_output(projected: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """The activated features times the second matrix."""
    return functional.linear(composite_activation(projected, form), weight, bias)
