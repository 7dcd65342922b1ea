"""The same in ordinary torch.

For torch.func and forward differentiation, which look into every step; for gradients of gradients;
and for little work on a CPU, where what it would save is a few MiB and what is computed again would
be some percent of the time.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ropewalk.kernels.gated_mlp.activation import FUNCTIONS
from ropewalk.kernels.gated_mlp.problem import Form

LITTLE = 2**20
"""Elements of a projection on a CPU up to which "auto" keeps what autograd keeps."""


def is_small(projected: Tensor, backend: str) -> bool:
    """Whether "auto" takes ordinary torch, and with it the memory that autograd keeps."""
    return backend == "auto" and projected.device.type == "cpu" and projected.numel() <= LITTLE


def composite_activation(projected: Tensor, form: Form) -> Tensor:
    """The activated features of (…, width)."""
    function = FUNCTIONS[form.activation]
    if not form.gated:
        return function(projected)
    gate, up = torch.chunk(projected, 2, dim=-1)
    return function(gate) * up


def composite_output(projected: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """The activated features times the second matrix."""
    return functional.linear(composite_activation(projected, form), weight, bias)
