"""The built-in cells, whose Jacobians are diagonal or of 2×2 blocks: their formulas in torch.

Each is elementwise along channels: x (…, gates, channels) is what a step gets, w (rows, channels)
are the weights, and a state is (…, channels), of the LSTM (…, 2, channels).

cell.py   what a cell has
tanh.py   one gate
gru.py    three gates in torch's convention; the ParaGRU of arXiv 2510.21450 §3
lstm.py   coupled input and forget gates, peepholes; the ParaLSTM there
"""

from ropewalk.kernels.newton_scan.cells.cell import Cell
from ropewalk.kernels.newton_scan.cells.gru import GRU
from ropewalk.kernels.newton_scan.cells.lstm import LSTM
from ropewalk.kernels.newton_scan.cells.tanh import TANH

CELLS: dict[str, Cell] = {"tanh": TANH, "gru": GRU, "lstm": LSTM}

__all__ = ["CELLS", "Cell"]
