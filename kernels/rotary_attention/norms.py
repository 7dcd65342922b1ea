"""RMSNorms of queries and keys before their rotation, in one pass with it where that can be.

    z = x · w / √(mean(x²) + eps) over each head

Where attention is torch's own of rotated tensors, norm and rotation are one op
(`ropewalk.kernels.rotary`), which reads each tensor once and keeps no normed one for the backward.
Everywhere else the kernels rotate what they load, and tensors are normed before.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ropewalk.kernels.rotary import validation


class Norms(NamedTuple):
    """Weights of both norms, none for no norm, and their epsilon."""

    query_weight: Float[Tensor, " head_dim"] | None = None
    key_weight: Float[Tensor, " head_dim"] | None = None
    eps: float = 1e-6

    def check(self, query: Tensor, key: Tensor) -> None:
        """One weight for each dimension of a head.

        Raises:
            ValueError: another shape or device, or an epsilon out of its range.
            TypeError: no tensor, or not of a floating-point dtype.
        """
        validation.check_norm("query_norm_weight", self.query_weight, query)
        validation.check_norm("key_norm_weight", self.key_weight, key)
        validation.check_eps(self.eps)

    def applied(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The normed tensors, in their dtype."""
        return _normed(query, self.query_weight, self.eps), _normed(key, self.key_weight, self.eps)


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if weight is None:
        return x
    # Torch's own kernel wants one dtype for both.
    wide = x if weight.dtype == x.dtype else x.to(torch.promote_types(x.dtype, weight.dtype))
    return functional.rms_norm(wide, x.shape[-1:], weight.to(wide.dtype), eps).to(x.dtype)
