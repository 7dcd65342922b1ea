"""The gated recurrent unit with diagonal recurrent matrices, in torch's convention.

r = σ(x_r + w_r h)    z = σ(x_z + w_z h)    n = tanh(x_n + r (w_n h + b_n))    h' = n + z (h − n)
"""

import torch
from torch import Tensor

from ropewalk.kernels.newton_scan.cells.cell import Cell, summed

Gates = tuple[Tensor, Tensor, Tensor, Tensor]


def _gates(x: Tensor, h: Tensor, w: Tensor) -> Gates:
    """r, z, n, and what r is multiplied by."""
    inner = torch.addcmul(w[3], w[2], h)
    r = torch.addcmul(x[..., 0, :], w[0], h).sigmoid()
    z = torch.addcmul(x[..., 1, :], w[1], h).sigmoid()
    return r, z, torch.addcmul(x[..., 2, :], r, inner).tanh(), inner


def _step(x: Tensor, h: Tensor, w: Tensor) -> Tensor:
    _, z, n, _ = _gates(x, h, w)
    return torch.lerp(n, h, z)


def _linearise(x: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    r, z, n, inner = _gates(x, h, w)
    away = h - n
    of_n = (1 - z) * (1 - n * n) * r
    jacobian = z + of_n * (w[2] + inner * (1 - r) * w[0]) + away * z * (1 - z) * w[1]
    return torch.addcmul(n, z, away), jacobian


def _pullback(x: Tensor, h: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    r, z, n, inner = _gates(x, h, w)
    keep = g * (1 - z)
    of_z = keep * (h - n) * z
    of_n = keep * (1 - n * n)
    of_r = of_n * inner * r * (1 - r)
    through = of_n * r
    return torch.stack([of_r, of_z, of_n], dim=-2), summed(of_r * h, of_z * h, through * h, through)


GRU = Cell("gru", ("r", "z", "n"), ("w_r", "w_z", "w_n", "b_n"), 1, _step, _linearise, _pullback)
