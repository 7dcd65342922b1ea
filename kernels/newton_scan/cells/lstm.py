"""Long short-term memory with diagonal matrices, coupled gates and peepholes; a state is [c, h].

    f = σ(x_f + a_f h + c_f c)    z = tanh(x_z + a_z h)    c' = z + f (c − z)
    o = σ(x_o + a_o h + c_o c')   h' = o tanh(c')

The input gate is 1 − f, and the output gate looks at the new cell.
"""

import torch
from torch import Tensor

from ropewalk.kernels.newton_scan.cells.cell import Cell, summed


def _gates(x: Tensor, c: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """f, z, c', o."""
    f = torch.addcmul(torch.addcmul(x[..., 0, :], w[0], h), w[3], c).sigmoid()
    z = torch.addcmul(x[..., 1, :], w[1], h).tanh()
    new = torch.lerp(z, c, f)
    o = torch.addcmul(torch.addcmul(x[..., 2, :], w[2], h), w[4], new).sigmoid()
    return f, z, new, o


def _step(x: Tensor, state: Tensor, w: Tensor) -> Tensor:
    c, h = state.unbind(-2)
    _, _, new, o = _gates(x, c, h, w)
    return torch.stack([new, o * new.tanh()], dim=-2)


def _linearise(x: Tensor, state: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    c, h = state.unbind(-2)
    f, z, new, o = _gates(x, c, h, w)
    shown = new.tanh()
    of_f = (c - z) * f * (1 - f)
    c_of_c = f + of_f * w[3]
    c_of_h = of_f * w[0] + (1 - f) * (1 - z * z) * w[1]
    of_o = shown * o * (1 - o)
    through = o * (1 - shown * shown) + of_o * w[4]
    rows = (c_of_c, c_of_h, through * c_of_c, through * c_of_h + of_o * w[2])
    jacobian = torch.stack(rows, dim=-2).unflatten(-2, (2, 2))
    return torch.stack([new, o * shown], dim=-2), jacobian


def _pullback(x: Tensor, state: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    c, h = state.unbind(-2)
    f, z, new, o = _gates(x, c, h, w)
    shown = new.tanh()
    of_c, of_h = g.unbind(-2)
    of_o = of_h * shown * o * (1 - o)
    of_new = of_c + of_h * o * (1 - shown * shown) + of_o * w[4]
    of_f = of_new * (c - z) * f * (1 - f)
    of_z = of_new * (1 - f) * (1 - z * z)
    rows = summed(of_f * h, of_z * h, of_o * h, of_f * c, of_o * new)
    return torch.stack([of_f, of_z, of_o], dim=-2), rows


LSTM = Cell(
    "lstm", ("f", "z", "o"), ("a_f", "a_z", "a_o", "c_f", "c_o"), 2, _step, _linearise, _pullback
)
