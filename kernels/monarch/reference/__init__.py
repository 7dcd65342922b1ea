"""The two products in torch: batched products over views, with no copy to permute.

chunks.py     how many tokens at once
products.py   forward
gradients.py  backward
"""

from ropewalk.kernels.monarch.reference.gradients import backward
from ropewalk.kernels.monarch.reference.products import forward

__all__ = ["backward", "forward"]
