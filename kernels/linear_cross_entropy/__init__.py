"""Cross-entropy of a linear head over a large vocabulary, without its logits.

loss.py         linear_cross_entropy
parallel.py     the same where each rank holds a slice of the vocabulary
assemble.py     the steps of both
validation.py   what is refused, and in which words
targets.py      targets as codes; an operator of its own, because it looks at values
problem.py      what an implementation gets and gives
op.py           the torch operators: schema, fake tensors, autograd
at_once.py      the operator of a loss that is one number, on a CPU
reduction.py    from a few numbers a token to the loss
filter.py       which tiles of the gradient may be left out
chunks.py       how much is held at once
backend.py      which implementation runs
reference/      the equation in torch, a tile at a time
triton/         kernels on a GPU
"""

from ropewalk.kernels.backends import Backend
from ropewalk.kernels.linear_cross_entropy.loss import linear_cross_entropy
from ropewalk.kernels.linear_cross_entropy.parallel import (
    vocabulary_parallel_linear_cross_entropy,
)
from ropewalk.kernels.linear_cross_entropy.reduction import Reduction

__all__ = [
    "Backend",
    "Reduction",
    "linear_cross_entropy",
    "vocabulary_parallel_linear_cross_entropy",
]
