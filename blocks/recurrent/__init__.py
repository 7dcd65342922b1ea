"""Nonlinear recurrences, solved for all times at once, and linear ones.

cells/    a step and its Jacobian: tanh, GRU, LSTM, and any function
"""

from ropewalk.blocks.recurrent.cells import (
    Cell,
    DiagonalGRUCell,
    DiagonalLSTMCell,
    FunctionCell,
    GRUCell,
    LSTMCell,
    TanhCell,
    check_cell,
)

__all__ = [
    "Cell",
    "DiagonalGRUCell",
    "DiagonalLSTMCell",
    "FunctionCell",
    "GRUCell",
    "LSTMCell",
    "TanhCell",
    "check_cell",
]
