"""Nonlinear recurrences, solved for all times at once, and linear ones.

cells/            a step and its Jacobian: tanh, GRU, LSTM, and any function
linear/           LRU, SLRU and MinGRU: linear in the state, one scan
ragged.py         sequences of different lengths
attention_rnn.py  softmax attention as a recurrence, for study
"""

from ropewalk.blocks.recurrent.attention_rnn import (
    AttentionState,
    prefix_attention,
    recurrent_attention,
)
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
from ropewalk.blocks.recurrent.linear import LRU, SLRU, LinearRecurrence, MinGRU

__all__ = [
    "AttentionState",
    "Cell",
    "DiagonalGRUCell",
    "DiagonalLSTMCell",
    "FunctionCell",
    "GRUCell",
    "LRU",
    "LSTMCell",
    "LinearRecurrence",
    "MinGRU",
    "SLRU",
    "TanhCell",
    "check_cell",
    "prefix_attention",
    "recurrent_attention",
]
