"""Top-p without sorting a vocabulary: the smallest probability that is kept.

A token is kept if the tokens that are more likely than it hold less than top_p together:

    kept(i)  ⇔  Σ_{p_j > p_i} p_j < top_p

so the most likely one always is, and equal ones are kept or dropped together. Along p the sum only
falls, so the threshold is bracketed by halving the distance between a bound below it and the
largest probability, on a logarithmic scale; each step is one masked sum. What is left inside the
bracket is sorted once it is few. Probabilities below (1 − top_p) / vocabulary are too little
together to be kept, so that only those above need to be looked at: of a language model's
vocabulary, few.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

# Values that are sorted: up to here it takes less time than to narrow them down.
FEW = 2048
HALVINGS = 6  # before what is left inside the bracket is looked at
# How much of the bound is believed, and up to which top_p: a row does not quite sum to 1.
BOUND_SLACK = 0.5
BOUND_HOLDS = 0.999


def lower_bound(top_p: float, vocabulary: int, dtype: torch.dtype) -> float:
    """A probability that the smallest kept one is above."""
    tiny = torch.finfo(dtype).tiny
    if top_p >= BOUND_HOLDS:
        return tiny
    return max(tiny, (1.0 - top_p) / vocabulary * BOUND_SLACK)


def smallest_kept(
    probabilities: Float[Tensor, "*rows vocabulary"], top_p: float
) -> Float[Tensor, "*rows 1"]:
    """The smallest probability of each row that top-p keeps, for top_p below 1."""
    vocabulary = probabilities.shape[-1]
    if vocabulary <= FEW:
        return _by_sorting(probabilities, top_p)
    rows = probabilities.reshape(-1, vocabulary)
    low = lower_bound(top_p, vocabulary, rows.dtype)
    found = [smallest_of(row, top_p, low) for row in rows]
    return torch.cat([rows.new_empty(0), *found]).view(*probabilities.shape[:-1], 1)


def smallest_of(
    candidates: Float[Tensor, " columns"], top_p: float, low: float
) -> Float[Tensor, " 1"]:
    """The smallest probability of a row that top-p keeps.

    Args:
        candidates: the row's probabilities; those up to `low` may be left out.
        top_p: below 1.
        low: from `lower_bound`.
    """
    # The threshold is one of `candidates` in (low, high], and `wanted` of the mass is left to them.
    wanted, high = top_p, candidates.max().item()
    if not high > low:  # a row of NaN
        return candidates.new_full((1,), float("nan"))
    while len(candidates) > FEW:
        above = 0.0
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5
            mass = functional.threshold(candidates, middle, 0.0).sum(dtype=torch.float64).item()
            if mass < wanted:
                high, above = middle, mass
            else:
                low = middle
        inside = candidates[(candidates > low) & (candidates <= high)]
        if len(inside) == 0:  # which only rounding of the sums can lead to
            return candidates[candidates > low].min()[None]
        candidates = inside
        wanted -= above
        # From here on the bracket ends at values that there are, so that halvings leave some out.
        least, most = candidates.aminmax()
        if least == most:
            return least[None]
        low, high = least.nextafter(torch.zeros_like(least)).item(), most.item()
    return _by_sorting(candidates, wanted)


def _by_sorting(
    probabilities: Float[Tensor, "*rows columns"], wanted: float
) -> Float[Tensor, "*rows 1"]:
    values = probabilities.sort(-1, descending=True).values
    above = values.cumsum(-1, dtype=torch.float64) - values
    kept = (above < wanted).sum(-1, keepdim=True)
    # At least one: rounding may have left less to the bracket than nothing.
    return values.gather(-1, (kept - 1).clamp_min(0))
