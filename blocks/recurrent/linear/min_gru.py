"""The minimal GRU: a GRU whose gate and candidate do not look at the state, hence linear in it.

    z_t = σ(W_z x_t)        h̃_t = W_h x_t        h_t = (1 − z_t) h_{t−1} + z_t h̃_t

A mean of old and new with weights in (0, 1) can neither overflow nor underflow, so that it is
scanned as it is: no logarithms, no sign that the state must have, and any initial state. (In log
space, as the paper computes it, the candidate must be positive; `positive=True` is that model,
whose candidate is g(x) = x + ½ for x ≥ 0 and σ(x) below. Its initial state must be positive only
there, not here.)

Source: Feng et al., arXiv 2410.01201, section 3.1 and appendix B.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.recurrent.linear.recurrence import LinearRecurrence, wider


class MinGRU(LinearRecurrence):
    """A minimal gated recurrent unit; its output is its state.

    Example:
        >>> layer = MinGRU(32, 64)
        >>> outputs, state = layer(torch.randn(2, 100, 32))
        >>> outputs.shape, state.shape
        (torch.Size([2, 100, 64]), torch.Size([2, 64]))

    Attributes:
        weight_ih: (2 · hidden, input): W_z above W_h.
        bias_ih: (2 · hidden,), or None.

    Args:
        input_size: of a step's input.
        hidden_size: of the state and the output.
        bias: whether the projections have one.
        positive: whether candidates are made positive by g, as in the paper's log-space model.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: sizes below 1.
        TypeError: an argument of the wrong kind.
    """

    weight_ih: nn.Parameter
    bias_ih: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        bias: bool = True,
        positive: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_integer("MinGRU", 1, input_size=input_size, hidden_size=hidden_size)
        self.input_size, self.hidden_size, self.positive = input_size, hidden_size, positive
        rows = 2 * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        vector = torch.empty(rows, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias_ih", None if vector is None else nn.Parameter(vector))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the projections as `nn.Linear` does: U(±1/√input_size)."""
        bound = 1 / math.sqrt(self.input_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def coefficients(
        self, inputs: Float[Tensor, "batch time input"]
    ) -> tuple[Float[Tensor, "batch time hidden"], Float[Tensor, "batch time hidden"]]:
        """1 − z and z h̃."""
        projected = wider(functional.linear(inputs, self.weight_ih, self.bias_ih))
        gate, candidate = projected.chunk(2, dim=-1)
        if self.positive:
            candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        # σ(−x) and not 1 − σ(x), which has no digits where the gate is nearly open.
        return (-gate).sigmoid(), gate.sigmoid() * candidate

    def readout(
        self,
        states: Float[Tensor, "batch time hidden"],
        inputs: Float[Tensor, "batch time input"],
    ) -> Float[Tensor, "batch time hidden"]:
        """The states, in the inputs' dtype."""
        return states.to(inputs.dtype)

    def extra_repr(self) -> str:
        """Sizes and options."""
        options = "" if self.bias_ih is not None else ", bias=False"
        options += ", positive=True" if self.positive else ""
        return f"{self.input_size}, {self.hidden_size}{options}"
