"""The simpler linear recurrent unit: an LRU without phases, all real.

    h_t = λ h_{t−1} + γ B x_t        y_t = C h_t + D x_t        λ = exp(−e^ν) in (0, 1)

Half the arithmetic and half the memory of a complex state of the same size. Without phases a state
can only fade: what depends on counting steps modulo something needs the complex one; on language
the article found no difference.

Source: kexue.fm/archives/9554; λ and γ as in Orvieto et al., arXiv 2303.06349.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.recurrent.linear.precision import wide_dtype
from ropewalk.blocks.recurrent.linear.recurrence import LinearRecurrence, wider
from ropewalk.blocks.recurrent.linear.ring import check_ring, draw_radii, normalise, radii


class SLRU(LinearRecurrence):
    """A real linear recurrent unit, as wide at its output as at its input.

    Example:
        >>> layer = SLRU(32, 64, r_min=0.9)
        >>> outputs, state = layer(torch.randn(2, 100, 32))
        >>> outputs.shape, state.shape
        (torch.Size([2, 100, 32]), torch.Size([2, 64]))

    Attributes:
        nu_log: ν, (hidden,); with the next in float32 also where the module is in half precision,
            and left there by `.half()`.
        gamma_log: log γ, (hidden,).
        input_weight: B, (hidden, input).
        output_weight: C, (input, hidden).
        skip: D, (input,).

    Args:
        input_size: of a step's input and output.
        hidden_size: of the state.
        r_min: the least λ at initialisation.
        r_max: the greatest.
        device: of the parameters.
        dtype: of the projections.

    Raises:
        ValueError: sizes below 1, radii out of range.
        TypeError: an argument of the wrong kind.
    """

    wide = ("nu_log", "gamma_log")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_integer("SLRU", 1, input_size=input_size, hidden_size=hidden_size)
        check_ring("SLRU", r_min, r_max)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.r_min, self.r_max = r_min, r_max

        def empty(*shape: int, dtype: torch.dtype | None = dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.nu_log = empty(hidden_size, dtype=wide_dtype(dtype))
        self.gamma_log = empty(hidden_size, dtype=wide_dtype(dtype))
        self.input_weight = empty(hidden_size, input_size)
        self.output_weight = empty(input_size, hidden_size)
        self.skip = empty(input_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws λ, B and C with unit gain, D."""
        draw_radii(self.nu_log, self.r_min, self.r_max)
        normalise(self.gamma_log, self.nu_log)
        nn.init.normal_(self.input_weight, std=1 / math.sqrt(self.input_size))
        nn.init.normal_(self.output_weight, std=1 / math.sqrt(self.hidden_size))
        nn.init.normal_(self.skip)

    @property
    def eigenvalues(self) -> Float[Tensor, " hidden"]:
        """λ, in (0, 1)."""
        return radii(self.nu_log)

    def coefficients(
        self, inputs: Float[Tensor, "batch time input"]
    ) -> tuple[Float[Tensor, "batch time hidden"], Float[Tensor, "batch time hidden"]]:
        """λ for every step, and γ B x."""
        b = wider(functional.linear(inputs, self.input_weight)) * self.gamma_log.exp()
        return self.eigenvalues.expand(b.shape), b

    def readout(
        self,
        states: Float[Tensor, "batch time hidden"],
        inputs: Float[Tensor, "batch time input"],
    ) -> Float[Tensor, "batch time input"]:
        """C h + D x, in the inputs' dtype."""
        states = states.to(self.output_weight.dtype)
        outputs = functional.linear(states, self.output_weight) + self.skip * inputs
        return outputs.to(inputs.dtype)

    def extra_repr(self) -> str:
        """Sizes, and where λ started."""
        return f"{self.input_size}, {self.hidden_size}, r_min={self.r_min}, r_max={self.r_max}"
