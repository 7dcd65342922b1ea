"""What `rotary_attention` refuses: each check says what was expected, what came, how to mend it.

tensors.py   query, key, value, and what is as long as they are
rules.py     rotary embedding, distance rule, log n
options.py   numbers and switches
packed.py    cumulative lengths
"""

from ropewalk.kernels.rotary_attention.validation.options import check_options
from ropewalk.kernels.rotary_attention.validation.packed import check_packed
from ropewalk.kernels.rotary_attention.validation.rules import (
    check_attention_factor,
    check_frequencies,
    check_log_n,
    check_rotary,
    check_rule,
)
from ropewalk.kernels.rotary_attention.validation.tensors import (
    check_key_lengths,
    check_mask,
    check_positions,
    check_sinks,
    check_tensors,
)

__all__ = [
    "check_attention_factor",
    "check_frequencies",
    "check_key_lengths",
    "check_log_n",
    "check_mask",
    "check_options",
    "check_packed",
    "check_positions",
    "check_rotary",
    "check_rule",
    "check_sinks",
    "check_tensors",
]
