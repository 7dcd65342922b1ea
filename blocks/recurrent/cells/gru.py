"""The gated recurrent unit, diagonal and dense, in torch's convention.

    r = σ(x_r + W_r h)    z = σ(x_z + W_z h)    n = tanh(x_n + r ⊙ (W_n h + b_n))
    h' = n + z ⊙ (h − n)

In the diagonal cell W_r, W_z and W_n are vectors. With m = W_n h + b_n:

    J = diag(z) + (1−z)(1−n²) [r W_n + r(1−r) m W_r] + (h−n) z(1−z) W_z

Bounded. Let |h| ≤ 1; then |h'| ≤ 1, because h' lies between n and h. Row by row, with |·| the sum
of absolute values along a row of weights, |m| ≤ |W_n| + |b_n| and |h−n| ≤ 2. If |W_r| ≤ 1 then

    r |W_n| + r(1−r) |m| |W_r| ≤ r(2−r) |W_n| + r(1−r) |b_n| ≤ |W_n| + ¼ |b_n|
    ‖J‖_∞ ≤ z + (1−z) (|W_n| + ¼ |b_n| + 2z |W_z|) ≤ 1        if |W_n| + ¼ |b_n| + 2 |W_z| ≤ 1

Source: Cho et al., arXiv 1406.1078; the diagonal form is ParaRNN's, arXiv 2510.21450, with
peepholes to all gates.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.blocks.recurrent.cells.bounded import bound, unbound
from ropewalk.blocks.recurrent.cells.gated import GatedCell, rows_of, signed


class _GatedUnit(GatedCell):
    """What the diagonal and the dense unit have in common: all but the product with the state."""

    gates: ClassVar[int] = 3

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
        self.state_shape = (hidden_dim,)
        super().__init__(
            input_dim,
            hidden_dim,
            (3, hidden_dim) if self.structure == "diagonal" else (3 * hidden_dim, hidden_dim),
            bias=bias,
            bounded=bounded,
            device=device,
            dtype=dtype,
        )

    def _added_bias(self) -> Tensor | None:
        if self.bias_ih is None or self.bias_hh is None:
            return None
        reset_and_update, new = self.bias_hh.split((2 * self.hidden_size, self.hidden_size))
        return self.bias_ih + torch.cat([reset_and_update, torch.zeros_like(new)])

    def _new_bias(self) -> Tensor:
        """b_n before it is bounded; zeros without biases."""
        if self.bias_hh is None:
            return self.weight_hh.new_zeros(self.hidden_size)
        return self.bias_hh[2 * self.hidden_size :]

    def effective_weights(self) -> list[Tensor]:
        """W_r, W_z, W_n and b_n; of a bounded cell in float32 or wider."""
        weight_r, weight_z, weight_n = self._recurrent()
        bias_n = self._new_bias()
        if not self.bounded:
            return [weight_r, weight_z, weight_n, bias_n]
        (bound_r,) = bound([(weight_r, 1.0)], 1.0)
        bound_n, bound_bias, bound_z = bound(
            [(weight_n, 1.0), (bias_n, 0.25), (weight_z, 2.0)], 1.0
        )
        return [bound_r, bound_z, bound_n, bound_bias]

    def named_weights(self) -> dict[str, Tensor]:
        """See `Cell.named_weights`."""
        return dict(zip(("W_r", "W_z", "W_n", "b_n"), self.effective_weights(), strict=True))

    def _recurrent(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _write(self, weight_r: Tensor, weight_z: Tensor, weight_n: Tensor) -> None:
        """Sets the recurrent weights and b_n = 0, given effective ones."""
        if self.bias_hh is not None:
            self.bias_hh[2 * self.hidden_size :] = 0
        if self.bounded:
            (weight_r,) = unbound([(weight_r, 1.0)], 1.0)
            weight_n, weight_z = unbound([(weight_n, 1.0), (weight_z, 2.0)], 1.0)
        for mine, drawn in zip(self._recurrent(), (weight_r, weight_z, weight_n), strict=True):
            mine.copy_(drawn)

    def _activations(
        self, state: Tensor, drive: Tensor, times_state: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        r_in, z_in, n_in = drive.unbind(-2)
        h_r, h_z, m = times_state
        r, z = torch.sigmoid(r_in + h_r), torch.sigmoid(z_in + h_z)
        return r, z, torch.tanh(n_in + r * m)


class DiagonalGRUCell(_GatedUnit):
    """A GRU whose gates read only their own channel of the state.

    Example:
        >>> cell = DiagonalGRUCell(16, 32)
        >>> cell.step(torch.zeros(2, 32), cell.project(torch.randn(2, 16))).shape
        torch.Size([2, 32])

    Attributes:
        weight_hh: rows W_r, W_z, W_n, (3, hidden); of a bounded cell the free parameters.

    Args:
        input_dim: dim of the inputs.
        hidden_dim: number of channels.
        bias: whether there are biases.
        bounded: whether |∂h'/∂h| ≤ 1 is kept by the parametrisation, for states in [−1, 1].
        device: of the parameters.
        dtype: of the parameters, a floating-point one.

    Raises:
        ValueError: a size below 1, a dtype that is not floating-point.
        TypeError: an argument of the wrong kind.
    """

    structure = "diagonal"
    kernel = "gru"

    def _recurrent(self) -> tuple[Tensor, ...]:
        return self.weight_hh.unbind()

    def _reset_recurrent(self) -> None:
        row = self.weight_hh[0]
        self._write(signed(row, 0.2, 0.9), signed(row, 0.0, 0.1), signed(row, 0.2, 0.7))
        self._keep(1)

    def _recurrent_weights(self) -> list[Tensor]:
        return self.effective_weights()

    def _times_state(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w_r, w_z, w_n, b_n = self._weights(state.dtype)
        return w_r * state, w_z * state, w_n * state + b_n

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.step`."""
        _, z, n = self._activations(state, drive, self._times_state(state))
        return n + z * (state - n)

    def jacobian(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.jacobian`."""
        products, (w_r, w_z, w_n, _) = self._times_state(state), self._weights(state.dtype)
        r, z, n = self._activations(state, drive, products)
        through_n = (1 - z) * (1 - n * n) * r * (w_n + products[2] * (1 - r) * w_r)
        return z + through_n + (state - n) * z * (1 - z) * w_z

    def kernel_weights(self) -> Float[Tensor, "rows channels"]:
        """W_r, W_z, W_n and b_n, (4, channels); see `ropewalk.kernels.newton_scan`."""
        return torch.stack(self.effective_weights())


class GRUCell(_GatedUnit):
    """The dense GRU of `nn.GRU`, whose weights it can take as they are with bounded=False.

    A step costs hidden² and its Jacobian is a dense matrix, so that solving in parallel costs
    hidden³.

    Example:
        >>> cell = GRUCell(16, 32, bounded=False)
        >>> cell.load_state_dict(nn.GRUCell(16, 32).state_dict())
        <All keys matched successfully>

    Attributes:
        weight_hh: W_r, W_z, W_n below one another, (3·hidden, hidden); of a bounded cell the free
            parameters.

    Args:
        input_dim: dim of the inputs.
        hidden_dim: size of the state.
        bias: whether there are biases.
        bounded: whether ‖∂h'/∂h‖_∞ ≤ 1 is kept by the parametrisation, for states in [−1, 1].
        device: of the parameters.
        dtype: of the parameters, a floating-point one.

    Raises:
        ValueError: a size below 1, a dtype that is not floating-point.
        TypeError: an argument of the wrong kind.
    """

    structure = "dense"

    def _recurrent(self) -> tuple[Tensor, ...]:
        return self.weight_hh.split(self.hidden_size)

    def _reset_recurrent(self) -> None:
        if not self.bounded:
            return
        block = self._recurrent()[0]
        self._write(
            rows_of(block, total=0.9, diagonal=0.0),
            rows_of(block, total=0.1, diagonal=0.0),
            rows_of(block, total=0.7, diagonal=0.4),
        )
        self._keep(1)

    def _recurrent_weights(self) -> list[Tensor]:
        *blocks, new_bias = self.effective_weights()
        return [torch.cat(blocks) if self.bounded else self.weight_hh, new_bias]

    def _times_state(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, new_bias = self._weights(state.dtype)
        r, z, m = functional.linear(state, weight).chunk(3, -1)
        return r, z, m + new_bias

    def step(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.step`."""
        _, z, n = self._activations(state, drive, self._times_state(state))
        return n + z * (state - n)

    def jacobian(self, state: Tensor, drive: Tensor) -> Tensor:
        """See `Cell.jacobian`."""
        products, (weight, _) = self._times_state(state), self._weights(state.dtype)
        weight_r, weight_z, weight_n = weight.chunk(3)
        r, z, n = self._activations(state, drive, products)
        of_n = (1 - z) * (1 - n * n) * r
        rows = (
            of_n[..., None] * weight_n
            + (of_n * products[2] * (1 - r))[..., None] * weight_r
            + ((state - n) * z * (1 - z))[..., None] * weight_z
        )
        return rows + torch.diag_embed(z)
