"""h' = tanh(x + w h), the example of kexue.fm/archives/9783 with a diagonal matrix."""

from torch import Tensor

from ropewalk.kernels.newton_scan.cells.cell import Cell, summed


def _step(x: Tensor, h: Tensor, w: Tensor) -> Tensor:
    return (x[..., 0, :] + w[0] * h).tanh()


def _linearise(x: Tensor, h: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    new = _step(x, h, w)
    return new, (1 - new * new) * w[0]


def _pullback(x: Tensor, h: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    new = _step(x, h, w)
    delta = g * (1 - new * new)
    return delta.unsqueeze(-2), summed(delta * h)


TANH = Cell("tanh", ("x",), ("w",), 1, _step, _linearise, _pullback)
