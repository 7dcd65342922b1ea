"""Cells: one step of a nonlinear recurrence, with its Jacobian.

cell.py      Cell: what solvers need to know; a class of one's own starts here
function.py  FunctionCell: a function made a cell
check.py     check_cell: whether a cell is what it declares
bounded.py   weights that can never make a state grow
gated.py     what the built-in cells share: parameters, projection, initialisation
tanh.py      TanhCell, dense or diagonal
gru.py       DiagonalGRUCell, GRUCell
lstm.py      DiagonalLSTMCell, LSTMCell
"""

from ropewalk.blocks.recurrent.cells.cell import Cell, Structure
from ropewalk.blocks.recurrent.cells.check import check_cell
from ropewalk.blocks.recurrent.cells.function import FunctionCell
from ropewalk.blocks.recurrent.cells.gru import DiagonalGRUCell, GRUCell
from ropewalk.blocks.recurrent.cells.lstm import DiagonalLSTMCell, LSTMCell
from ropewalk.blocks.recurrent.cells.tanh import TanhCell

__all__ = [
    "Cell",
    "DiagonalGRUCell",
    "DiagonalLSTMCell",
    "FunctionCell",
    "GRUCell",
    "LSTMCell",
    "Structure",
    "TanhCell",
    "check_cell",
]
