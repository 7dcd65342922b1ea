"""Triton's path: the logits are read from memory once.

    configurations.py  tile sizes and warps: a table that the compile tests prove
    rows.py            where a row lies, and blocks of it
    statistics.py      kernel 1: maximum and mass of each split of a row, and of each block
    search.py          the threshold of top-p, by sections
    threshold.py       kernel 2: of each row, logsumexp, threshold and entropy
    scores.py          scores of a question's contexts, and their weights
    merge.py           kernel 3: choice, pooling, and the unconditional taken off
    normalise.py       kernel 4: the merged row's logsumexp taken off
    launch.py          `merge`

Top-p needs a second look at a row, because nobody knows a row's mass before its end. It is a look
at few logits only: maximum and mass of each block of 128 logits tell a bound that the threshold is
not below, and a block whose maximum is below it holds nothing that is kept. Where a model is sure
of anything, that leaves a handful of blocks; a row as flat as noise is looked at again as a whole,
several times, from the cache if it is in there. Minimum entropy then reads two rows, the other
poolings all of them.

A histogram would find the threshold in the first look, but Triton makes one by comparing every
logit with every bin, which takes many times as long as to read it.

No kernel waits for another within a launch, every sum has one order, so that results repeat bit for
bit, and nothing here reads a value back from the device.
"""

from ropewalk.kernels.context_merge.triton.launch import merge, unsupported

__all__ = ["merge", "unsupported"]
