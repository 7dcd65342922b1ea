"""Nonlinear recurrences, solved for all times at once, and linear ones.

cells/            a step and its Jacobian: tanh, GRU, LSTM, and any function
solvers/          solve and iterate: all states at once, by many methods
layers/           ParallelGRU, ParallelLSTM, ParallelRNN: the interface of nn.GRU
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
from ropewalk.blocks.recurrent.layers import Options as LayerOptions
from ropewalk.blocks.recurrent.layers import ParallelGRU, ParallelLSTM, ParallelRNN
from ropewalk.blocks.recurrent.linear import LRU, SLRU, LinearRecurrence, MinGRU
from ropewalk.blocks.recurrent.solvers import (
    Attempt,
    Clip,
    ConvergenceError,
    Elk,
    FirstOrder,
    Fixed,
    Jacobi,
    Method,
    Newton,
    Picard,
    Quasi,
    RecurrenceWarning,
    Scale,
    Sequential,
    SolveInfo,
    iterate,
    solve,
)

__all__ = [
    "Attempt",
    "AttentionState",
    "Cell",
    "Clip",
    "ConvergenceError",
    "DiagonalGRUCell",
    "DiagonalLSTMCell",
    "Elk",
    "FirstOrder",
    "Fixed",
    "FunctionCell",
    "GRUCell",
    "Jacobi",
    "LRU",
    "LSTMCell",
    "LayerOptions",
    "LinearRecurrence",
    "Method",
    "MinGRU",
    "Newton",
    "ParallelGRU",
    "ParallelLSTM",
    "ParallelRNN",
    "Picard",
    "Quasi",
    "RecurrenceWarning",
    "SLRU",
    "Scale",
    "Sequential",
    "SolveInfo",
    "TanhCell",
    "check_cell",
    "iterate",
    "prefix_attention",
    "recurrent_attention",
    "solve",
]
