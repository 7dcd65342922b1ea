"""Layers with the interface of `nn.GRU`, `nn.LSTM` and `nn.RNN`.

gru.py, lstm.py, rnn.py   ParallelGRU, ParallelLSTM, ParallelRNN
layer.py                  what they share
single_state.py           forward and step of layers with one state
options.py                what they can be told beyond torch's arguments
stack.py                  all layers, over whole sequences
solving.py                one layer in one direction, as one recurrence over time
fused.py                  dense layers in torch's operators, whole under a compiler
sequences.py              inputs of every form, and results in the same
borrowing.py              cells whose parameters are the layer's
transfer.py               weights from and to torch's layers
"""

from ropewalk.blocks.recurrent.layers.gru import ParallelGRU
from ropewalk.blocks.recurrent.layers.lstm import ParallelLSTM
from ropewalk.blocks.recurrent.layers.options import Options
from ropewalk.blocks.recurrent.layers.rnn import ParallelRNN

__all__ = ["Options", "ParallelGRU", "ParallelLSTM", "ParallelRNN"]
