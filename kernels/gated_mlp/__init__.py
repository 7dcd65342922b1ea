"""Feed-forwards: two products with an activation, gated or plain, between them.

    activated = act(gate) · up        [gate, up] the halves of the projection; or act(projection)
    y = activated @ W_outᵀ + b_out    projection = x @ W_inᵀ + b_in

What a backward keeps is x and the projection: what lies between the activation and the second
product, half as large again or, plain, as large as the projection, is computed again by the pass
that makes the projection's gradient.

gate.py          gated_activation
feed_forward.py  gated_mlp
activation.py    the activations in torch
validation.py    what is refused, and in which words
problem.py       what an implementation gets and gives
op.py            the torch operators: schema, fake tensors, autograd
eager.py         the same without an operator, for plain tensors, and gradients of gradients
composite.py     the same in ordinary torch: torch.func, forward differentiation, little work
backend.py       which implementation computes
reference/       the equations in torch, tile by tile on a CPU
triton/          one launch each way on a GPU
"""

from ropewalk.kernels.backends import Backend
from ropewalk.kernels.gated_mlp.activation import ACTIVATIONS, Activation
from ropewalk.kernels.gated_mlp.feed_forward import gated_mlp
from ropewalk.kernels.gated_mlp.gate import gated_activation

__all__ = ["ACTIVATIONS", "Activation", "Backend", "gated_activation", "gated_mlp"]
