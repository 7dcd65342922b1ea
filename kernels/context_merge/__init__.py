"""Next-token distributions under many contexts, merged into one (NBCE).

merge.py           context_merge
custom_pooling.py  the same with a pooling function of the user's
validation.py      what is refused, and in which words
problem.py         what an implementation gets and gives
op.py              the torch operators: schema, fake tensors, autograd
backend.py         which implementation computes
reference/         the equation in torch
triton/            kernels on a GPU
"""

from ropewalk.kernels.backends import Backend
from ropewalk.kernels.context_merge.custom_pooling import PoolingFunction, pool_with
from ropewalk.kernels.context_merge.merge import Merged, context_merge
from ropewalk.kernels.context_merge.problem import POOLINGS, Pooling

__all__ = [
    "POOLINGS",
    "Backend",
    "Merged",
    "Pooling",
    "PoolingFunction",
    "context_merge",
    "pool_with",
]
