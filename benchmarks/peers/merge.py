"""Attention to disjoint sets of keys, merged by logsumexp.

    o = Σ_b e^{lse_b − lse} o_b,   lse = log Σ_b e^{lse_b}

A set in which a query sees no key has lse_b = −∞ and takes no part.
"""

import torch
from torch import Tensor


def merge(outputs: list[Tensor], logsumexps: list[Tensor]) -> Tensor:
    """Outputs (…, query, head_dim) with logsumexps (…, query); in the outputs' dtype."""
    total = torch.stack(logsumexps).logsumexp(0)
    parts = [
        torch.exp(lse - total).unsqueeze(-1) * output
        for output, lse in zip(outputs, logsumexps, strict=True)
    ]
    return torch.stack(parts).sum(0).to(outputs[0].dtype)
