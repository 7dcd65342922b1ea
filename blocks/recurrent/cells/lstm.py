"""Long short-term memory: a diagonal cell with coupled gates and peepholes, and torch's dense one.

`DiagonalLSTMCell` (CIFG: the input gate is 1 − f), state [c, h]:

    f = σ(x_f + a_f h + c_f c)    z = tanh(x_z + a_z h)    c' = z + f (c − z)
    o = σ(x_o + a_o h + c_o c')   h' = o tanh(c')

    ∂c'/∂c = f + (c−z) f(1−f) c_f        ∂c'/∂h = (1−f)(1−z²) a_z + (c−z) f(1−f) a_f
    ∂h'/∂· = [o(1−t²) + t o(1−o) c_o] ∂c'/∂· + t o(1−o) a_o ∂h/∂·,    t = tanh c'

Bounded. Let |c|, |h| ≤ 1; then |c'| ≤ 1, because it lies between c and z, and |h'| < 1. Rows of J:

    |∂c'| ≤ f + (1−f) (|a_z| + 2f (|c_f| + |a_f|)) ≤ 1    if |a_z| + 2 (|c_f| + |a_f|) ≤ 1
    |∂h'| ≤ o (1−t²) + |t| o(1−o) (|c_o| + |a_o|) ≤ o (1−t²) + 4|t| o(1−o)
                                                          if |c_o| + |a_o| ≤ 4

and the last is at most max(1−t², (1 − t² + 4|t|)² / 16|t|) ≤ 1 for |t| ≤ tanh 1; its greatest
value is 0.99 where the second bound holds.

`LSTMCell` is `nn.LSTM`'s: gates i, f, g, o and c' = f c + i g. Its c is not confined, so there is
no bounded form of it. Its Jacobian is dense over the 2·hidden numbers of the state [c, h].

Source: Hochreiter & Schmidhuber 1997; Greff et al., arXiv 1503.04069 (CIFG, peepholes); ParaRNN,
arXiv 2510.21450 (diagonal).
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.blocks.recurrent.cells.bounded import bound, unbound
from ropewalk.blocks.recurrent.cells.gated import GatedCell, signed


class DiagonalLSTMCell(GatedCell):
    """An LSTM whose gates read only their own channel, with coupled gates and peepholes.

    Example:
        >>> cell = DiagonalLSTMCell(16, 32)
        >>> state = cell.step(torch.zeros(5, 2, 32), cell.project(torch.randn(5, 16)))
        >>> cell.output(state).shape
        torch.Size([5, 32])

    Attributes:
        weight_hh: rows a_f, a_z, a_o, c_f, c_o, (5, hidden); of a bounded cell the free parameters.
        bias_hh: None; all biases are the inputs'.

    Args:
        input_dim: dim of the inputs.
        hidden_dim: number of channels.
        bias: whether there are biases.
        bounded: whether ‖∂[c', h']/∂[c, h]‖_∞ ≤ 1 is kept by the parametrisation, for states in
            [−1, 1].
        device: of the parameters.
        dtype: of the parameters, a floating-point one.

    Raises:
        ValueError: a size below 1, a dtype that is not floating-point.
        TypeError: an argument of the wrong kind.
    """

    gates: ClassVar[int] = 3
    structure = "block2"
    kernel = "lstm"

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        bias: bool = True,
        bounded: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.state_shape = (2, hidden_dim)
        super().__init__(
            input_dim,
            hidden_dim,
            (5, hidden_dim),
            bias=bias,
            bounded=bounded,
            device=device,
            dtype=dtype,
            hidden_bias=False,
        )

    def _reset_recurrent(self) -> None:
        row = self.weight_hh[0]
        a_f, c_f, a_z = signed(row, 0, 0.1), signed(row, 0, 0.1), signed(row, 0.1, 0.5)
        a_o, c_o = signed(row, 0, 1), signed(row, 0, 1)
        if self.bounded:
            a_f, c_f, a_z = unbound([(a_f, 2.0), (c_f, 2.0), (a_z, 1.0)], 1.0)
            a_o, c_o = unbound([(a_o, 1.0), (c_o, 1.0)], 4.0)
        self.weight_hh.copy_(torch.stack([a_f, a_z, a_o, c_f, c_o]))
        self._keep(0)

    def effective_weights(self) -> list[Tensor]:
        """a_f, a_z, a_o, c_f and c_o; of a bounded cell in float32 or wider."""
        a_f, a_z, a_o, c_f, c_o = self.weight_hh.unbind()
        if self.bounded:
            a_f, c_f, a_z = bound([(a_f, 2.0), (c_f, 2.0), (a_z, 1.0)], 1.0)
            a_o, c_o = bound([(a_o, 1.0), (c_o, 1.0)], 4.0)
        return [a_f, a_z, a_o, c_f, c_o]

    def named_weights(self) -> dict[str, Tensor]:
        """See `Cell.named_weights`."""
        names = ("a_f", "a_z", "a_o", "c_f", "c_o")
        return dict(zip(names, self.effective_weights(), strict=True))

    def _recurrent_weights(self) -> list[Tensor]:
        return self.effective_weights()

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.step`."""
        a_f, a_z, a_o, c_f, c_o = self._weights(state.dtype)
        (c, h), (f_in, z_in, o_in) = state.unbind(-2), drive.unbind(-2)
        f, z = torch.sigmoid(f_in + a_f * h + c_f * c), torch.tanh(z_in + a_z * h)
        c_new = z + f * (c - z)
        h_new = torch.sigmoid(o_in + a_o * h + c_o * c_new) * torch.tanh(c_new)
        return torch.stack([c_new, h_new], -2)

    def jacobian(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.jacobian`."""
        a_f, a_z, a_o, c_f, c_o = self._weights(state.dtype)
        (c, h), (f_in, z_in, o_in) = state.unbind(-2), drive.unbind(-2)
        f, z = torch.sigmoid(f_in + a_f * h + c_f * c), torch.tanh(z_in + a_z * h)
        c_new = z + f * (c - z)
        o, t = torch.sigmoid(o_in + a_o * h + c_o * c_new), torch.tanh(c_new)
        of_f, of_o = (c - z) * f * (1 - f), t * o * (1 - o)
        cc = f + of_f * c_f
        ch = (1 - f) * (1 - z * z) * a_z + of_f * a_f
        through_c = o * (1 - t * t) + of_o * c_o
        rows = [
            torch.stack([cc, ch], -2),
            torch.stack([through_c * cc, through_c * ch + of_o * a_o], -2),
        ]
        return torch.stack(rows, -3)

    def output(self, state: Tensor) -> Tensor:
        """The h of [c, h]."""
        return state[..., 1, :]

    def kernel_weights(self) -> Float[Tensor, "rows channels"]:
        """a_f, a_z, a_o, c_f and c_o, (5, channels); see `ropewalk.kernels.newton_scan`."""
        return torch.stack(self.effective_weights())


class LSTMCell(GatedCell):
    """The dense LSTM of `nn.LSTM`, whose weights it takes as they are; the state is [c, h], joined.

    It is never bounded. Solving it in parallel costs 8·hidden³ a step.

    Example:
        >>> cell = LSTMCell(16, 32)
        >>> cell.load_state_dict(nn.LSTMCell(16, 32).state_dict())
        <All keys matched successfully>
        >>> state = cell.step(torch.zeros(5, 64), cell.project(torch.randn(5, 16)))
        >>> cell.output(state).shape
        torch.Size([5, 32])

    Args:
        input_dim: dim of the inputs.
        hidden_dim: size of c and of h.
        bias: whether there are biases.
        device: of the parameters.
        dtype: of the parameters, a floating-point one.

    Raises:
        ValueError: a size below 1, a dtype that is not floating-point.
        TypeError: an argument of the wrong kind.
    """

    gates: ClassVar[int] = 4
    structure = "dense"

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_dim,
            hidden_dim,
            (4 * hidden_dim, hidden_dim),
            bias=bias,
            bounded=False,
            device=device,
            dtype=dtype,
        )
        self.state_shape = (2 * hidden_dim,)

    def _reset_recurrent(self) -> None:
        """All is drawn as torch draws it."""

    def named_weights(self) -> dict[str, Tensor]:
        """See `Cell.named_weights`."""
        return dict(zip(("W_i", "W_f", "W_g", "W_o"), self.weight_hh.chunk(4), strict=True))

    def _recurrent_weights(self) -> list[Tensor]:
        return [self.weight_hh]

    def _activations(self, state: Tensor, drive: Tensor) -> tuple[Tensor, ...]:
        c, h = state.chunk(2, -1)
        (weight,) = self._weights(state.dtype)
        products = functional.linear(h, weight)
        gates = drive + products.unflatten(-1, (4, self.hidden_size))
        i_in, f_in, g_in, o_in = gates.unbind(-2)
        return c, torch.sigmoid(i_in), torch.sigmoid(f_in), torch.tanh(g_in), torch.sigmoid(o_in)

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.step`."""
        c, i, f, g, o = self._activations(state, drive)
        c_new = f * c + i * g
        return torch.cat([c_new, o * torch.tanh(c_new)], -1)

    def jacobian(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.jacobian`."""
        c, i, f, g, o = self._activations(state, drive)
        (weight,) = self._weights(state.dtype)
        weight_i, weight_f, weight_g, weight_o = weight.chunk(4)
        t = torch.tanh(f * c + i * g)
        cc = torch.diag_embed(f)
        ch = (
            (g * i * (1 - i))[..., None] * weight_i
            + (c * f * (1 - f))[..., None] * weight_f
            + (i * (1 - g * g))[..., None] * weight_g
        )
        slope, of_o = (o * (1 - t * t))[..., None], (t * o * (1 - o))[..., None]
        rows = [torch.cat([cc, ch], -1), torch.cat([slope * cc, slope * ch + of_o * weight_o], -1)]
        return torch.cat(rows, -2)

    def output(self, state: Tensor) -> Tensor:
        """The h of [c, h]."""
        return state[..., self.hidden_size :]
