"""The equation in torch: any device and dtype, and the CPU's path.

rows.py      of each row: logsumexp, the smallest logit that is kept, entropy
cutoff.py    top-p by a search for the threshold
pool.py      from the contexts' rows to one
merge.py     the whole
gradient.py  its gradient
"""

from ropewalk.kernels.context_merge.reference.gradient import gradient
from ropewalk.kernels.context_merge.reference.merge import merge

__all__ = ["gradient", "merge"]
