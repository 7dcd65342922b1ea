"""The equation in torch, a tile of logits at a time: any device and dtype, and the CPU's path.

tiles.py           which tokens and columns are computed together, and a tile's logits
statistics.py      forward: logsumexp, the target's logit, a weighted sum of logits
gradients.py       backward: the logits again, their gradient, and its two products
logit_gradient.py  a tile of logits turned into their gradient
whole_rows.py      a loss of one number and its gradients in one pass
"""

from ropewalk.kernels.linear_cross_entropy.reference.gradients import gradients
from ropewalk.kernels.linear_cross_entropy.reference.statistics import statistics
from ropewalk.kernels.linear_cross_entropy.reference.whole_rows import loss_and_gradients

__all__ = ["gradients", "loss_and_gradients", "statistics"]
