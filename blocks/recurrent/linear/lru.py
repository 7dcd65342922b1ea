"""The linear recurrent unit: a diagonal complex recurrence between two dense projections.

    h_t = λ h_{t−1} + γ B x_t        y_t = Re(C h_t) + D x_t        λ = exp(−e^ν + i e^θ)

λ stays inside the unit disc in training, and starts on a ring (`ring.py`). Nothing divides by
λ^k, which underflows: the scan multiplies only forwards. Complex numbers are stored as pairs of
real ones, so that casting, optimisers and checkpoints see ordinary parameters.

Source: Orvieto et al., arXiv 2303.06349; kexue.fm/archives/9554.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.recurrent.linear.precision import wide_dtype
from ropewalk.blocks.recurrent.linear.recurrence import LinearRecurrence, wider
from ropewalk.blocks.recurrent.linear.ring import (
    check_phase,
    check_ring,
    draw_phases,
    draw_radii,
    eigenvalues,
    normalise,
)


class LRU(LinearRecurrence):
    """A linear recurrent unit, as wide at its output as at its input.

    Example:
        >>> layer = LRU(32, 64, r_min=0.9, r_max=0.999)
        >>> outputs, state = layer(torch.randn(2, 100, 32))
        >>> outputs.shape, state.shape, state.dtype
        (torch.Size([2, 100, 32]), torch.Size([2, 64]), torch.complex64)
        >>> output, state = layer.step(torch.randn(2, 32), state)

    Attributes:
        nu_log: ν, (hidden,); with the next two in float32 also where the module is in half
            precision, and left there by `.half()`.
        theta_log: θ, (hidden,).
        gamma_log: log γ, (hidden,).
        input_weight: B, (2 · hidden, input): rows are Re and Im of the first state, then of the
            second.
        output_weight: C, (input, 2 · hidden): columns are Re C and −Im C of the first state, then
            of the second: what the parts of the state are multiplied by.
        skip: D, (input,).

    Args:
        input_size: of a step's input and output.
        hidden_size: of the complex state.
        r_min: the least |λ| at initialisation. For long memories take 0.9 or more.
        r_max: the greatest.
        max_phase: the greatest phase of λ at initialisation, in radians; π/10 for long sequences.
        device: of the parameters.
        dtype: of the projections.

    Raises:
        ValueError: sizes below 1, radii or a phase out of range.
        TypeError: an argument of the wrong kind.
    """

    wide = ("nu_log", "theta_log", "gamma_log")
    complex_state = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_integer("LRU", 1, input_size=input_size, hidden_size=hidden_size)
        check_ring("LRU", r_min, r_max)
        check_phase("LRU", max_phase)
        self.input_size, self.hidden_size = input_size, hidden_size
        self.r_min, self.r_max, self.max_phase = r_min, r_max, max_phase

        def empty(*shape: int, dtype: torch.dtype | None = dtype) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.nu_log = empty(hidden_size, dtype=wide_dtype(dtype))
        self.theta_log = empty(hidden_size, dtype=wide_dtype(dtype))
        self.gamma_log = empty(hidden_size, dtype=wide_dtype(dtype))
        self.input_weight = empty(2 * hidden_size, input_size)
        self.output_weight = empty(input_size, 2 * hidden_size)
        self.skip = empty(input_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws λ on its ring, B and C with unit gain (each part has half the variance), D."""
        draw_radii(self.nu_log, self.r_min, self.r_max)
        draw_phases(self.theta_log, self.max_phase)
        normalise(self.gamma_log, self.nu_log)
        nn.init.normal_(self.input_weight, std=1 / math.sqrt(2 * self.input_size))
        nn.init.normal_(self.output_weight, std=1 / math.sqrt(self.hidden_size))
        nn.init.normal_(self.skip)

    @property
    def eigenvalues(self) -> Complex[Tensor, " hidden"]:
        """λ, inside the unit disc."""
        return eigenvalues(self.nu_log, self.theta_log)

    def coefficients(
        self, inputs: Float[Tensor, "batch time input"]
    ) -> tuple[Complex[Tensor, "batch time hidden"], Complex[Tensor, "batch time hidden"]]:
        """λ for every step, and γ B x."""
        parts = wider(functional.linear(inputs, self.input_weight))
        parts = parts.unflatten(-1, (self.hidden_size, 2)) * self.gamma_log.exp().unsqueeze(-1)
        b = torch.view_as_complex(parts)
        return self.eigenvalues.expand(b.shape), b

    def readout(
        self,
        states: Complex[Tensor, "batch time hidden"],
        inputs: Float[Tensor, "batch time input"],
    ) -> Float[Tensor, "batch time input"]:
        """Re(C h) + D x, in the inputs' dtype."""
        parts = torch.view_as_real(states).flatten(-2).to(self.output_weight.dtype)
        outputs = functional.linear(parts, self.output_weight) + self.skip * inputs
        return outputs.to(inputs.dtype)

    def extra_repr(self) -> str:
        """Sizes, and the ring that λ started on."""
        return (
            f"{self.input_size}, {self.hidden_size}, r_min={self.r_min}, r_max={self.r_max}, "
            f"max_phase={self.max_phase:.4g}"
        )
