"""Who merges contexts.

    auto, triton, reference   `ropewalk.kernels.context_merge` with that backend
    sorted                    what is written without it: log-softmax, each row sorted, its
                              cumulative sum, threshold, entropy, choice and merge, each a pass in
                              float32
    sorted-compiled           the same through torch.compile
    copy                      a copy of the logits, which merges nothing: reads and writes what a
                              merge only has to read

The sorted form keeps equals together, as the definition does. transformers' own top-p warper costs
the same sort and sum, and one scatter more; it cuts equals in the order that the sort left them in.
"""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from benchmarks.case import Unavailable
from benchmarks.context_merge import BETA, ETA, TOP_P, Outcome
from ropewalk.kernels.context_merge import Backend, context_merge

if TYPE_CHECKING:
    from benchmarks.context_merge import Merge, MergeWorkload

COPY = "copy"
NOTHING = float("-inf")


def build(name: str, workload: "MergeWorkload") -> "Merge":
    """The function of (output, previous) that a peer times.

    Raises:
        Unavailable: it cannot take part.
    """
    if name == "sorted":
        return sorted_form
    if name == "sorted-compiled":
        torch.compiler.reset()
        return torch.compile(sorted_form, dynamic=False, fullgraph=True)
    return _library(cast("Backend", name), workload)


def sorted_form(output: Tensor, previous: Tensor) -> Outcome:
    """Everything in torch."""
    log_probs = output.log_softmax(-1, dtype=torch.float32)
    descending = log_probs.sort(-1, descending=True).values
    probs = descending.exp()
    kept = (probs.cumsum(-1) - probs < TOP_P).sum(-1, keepdim=True)
    cut = log_probs.masked_fill(log_probs < descending.gather(-1, kept - 1), NOTHING)
    bare, rows = cut[:, 0], cut[:, 1:]
    entropies = torch.special.entr(rows.exp()).sum(-1)
    places = torch.arange(rows.shape[1], device=rows.device)
    chosen = torch.where(places == previous[:, None], entropies - ETA, entropies).argmin(-1)
    pooled = rows.gather(1, chosen[:, None, None].expand(-1, 1, rows.shape[2]))[:, 0]
    off = torch.where(bare > NOTHING, (1 + BETA) * pooled - BETA * bare, pooled)
    merged = off.masked_fill(pooled == NOTHING, NOTHING).log_softmax(-1)
    return Outcome(merged, chosen, entropies)


def _library(backend: "Backend", workload: "MergeWorkload") -> "Merge":
    def merge(output: Tensor, previous: Tensor) -> Outcome:
        found = context_merge(
            output[:, 1:], output[:, 0], previous=previous,
            beta=BETA, eta=ETA, top_p=TOP_P, backend=backend,
        )  # fmt: skip
        return Outcome(*found)

    try:  # a backend that the op refuses here is absent, not wrong
        merge(workload.output[:1, :2, :16], workload.previous[:1].clamp(max=0))
    except ValueError as error:
        if "backend" not in str(error):
            raise
        raise Unavailable(str(error)) from None
    return merge
