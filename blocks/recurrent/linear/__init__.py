"""Linear recurrences h_t = a_t h_{t−1} + b_t with a readout: layers that one scan computes.

recurrence.py   LinearRecurrence: what they share: sequence, packed sequences, one step
ring.py         eigenvalues on a ring of the unit disc, and their normalisation
precision.py    parameters that stay in float32 under `.to(torch.bfloat16)`
lru.py          LRU: complex eigenvalues
slru.py         SLRU: real ones in (0, 1)
min_gru.py      MinGRU: gates of the input alone
"""

from ropewalk.blocks.recurrent.linear.lru import LRU
from ropewalk.blocks.recurrent.linear.min_gru import MinGRU
from ropewalk.blocks.recurrent.linear.recurrence import LinearRecurrence
from ropewalk.blocks.recurrent.linear.slru import SLRU

__all__ = ["LRU", "SLRU", "LinearRecurrence", "MinGRU"]
