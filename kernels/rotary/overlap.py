"""Whether two tensors have an element of memory in common.

Queries and keys are often slices of one fused projection: their elements alternate, so that the
ranges of addresses overlap while no element is shared. An element is shared where

    offset_q + Σ i·stride_q = offset_k + Σ j·stride_k,   0 ≤ i < size_q, 0 ≤ j < size_k

Counting j down from its end turns this into one sum of strides, each taken a bounded number of
times, that has to hit a target. Taken from the largest stride on, few multiples leave a rest that
the smaller strides can still reach, so the search is short for the layouts that tensors have.
"""

from collections import Counter

from torch import Tensor


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether `a` and `b`, of one dtype and no negative strides, share an element of a storage."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    if a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    times: Counter[int] = Counter()
    for x in (a, b):
        for size, stride in zip(x.shape, x.stride(), strict=True):
            times[stride] += size - 1
    end = sum((size - 1) * stride for size, stride in zip(b.shape, b.stride(), strict=True))
    terms = sorted(
        ((stride, most) for stride, most in times.items() if stride * most), reverse=True
    )
    return _reaches(terms, int(b.storage_offset() + end - a.storage_offset()))


def _reaches(terms: list[tuple[int, int]], target: int) -> bool:
    """Whether Σ count·stride = target for counts from 0 to each stride's most."""
    targets = {target}
    rest = sum(stride * most for stride, most in terms)
    for stride, most in terms:
        rest -= stride * most
        targets = {
            target - count * stride
            for target in targets
            for count in range(
                max(0, -((rest - target) // stride)), min(most, target // stride) + 1
            )
        }
    return 0 in targets
