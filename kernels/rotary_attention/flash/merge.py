"""Attention to disjoint sets of keys, merged exactly by logsumexp.

    lse = log(e^{lse₁} + e^{lse₂}),   o = o₁ e^{lse₁ − lse} + o₂ e^{lse₂ − lse}

A sink is a key of score `sink` without a value (StreamingLLM, arXiv 2309.17453): it enters last, as
a set whose output is 0.
"""

import torch
from torch import Tensor


class Merged:
    """Attention of all queries to the keys that were added so far; zeros and −∞ before any.

    Attributes:
        output: (rows, groups, query, value_dim).
        logsumexp: (rows, groups, query).
    """

    def __init__(self, output: Tensor, logsumexp: Tensor) -> None:
        self.output, self.logsumexp = output.zero_(), logsumexp.fill_(-torch.inf)
        self._seen: list[tuple[slice, slice]] = []

    def add(self, groups: slice, rows: slice, output: Tensor, logsumexp: Tensor) -> None:
        """Adds attention of the queries `rows`, all of whose logsumexps are finite.

        Args:
            groups: which of the groups.
            rows: which of the queries.
            output: (rows, groups, query, value_dim); overwritten.
            logsumexp: (rows, groups, query).
        """
        held, statistics = self.output[:, groups, rows], self.logsumexp[:, groups, rows]
        if not any(_overlap(groups, g) and _overlap(rows, r) for g, r in self._seen):
            held.copy_(output)
            statistics.copy_(logsumexp)
        else:
            total = torch.logaddexp(statistics, logsumexp)
            held.mul_((statistics - total).exp_().unsqueeze(-1))
            # Products in place, then a sum: a fused product with a broadcast factor is slower.
            held.add_(output.mul_((logsumexp - total).exp_().unsqueeze(-1)))
            statistics.copy_(total)
        self._seen.append((groups, rows))

    def add_sinks(self, sinks: Tensor) -> None:
        """Adds a logit without value per head; `sinks` broadcasts to the logsumexps."""
        total = torch.logaddexp(self.logsumexp, sinks)
        # −∞ − −∞ where there is no key and the sink is −∞ too; such a row's output is 0 and stays.
        change = (self.logsumexp - total).masked_fill_(total == -torch.inf, 0.0)
        self.output.mul_(change.exp_().unsqueeze(-1))
        self.logsumexp.copy_(total)


def _overlap(a: slice, b: slice) -> bool:
    return a.start < b.stop and b.start < a.stop
