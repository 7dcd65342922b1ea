"""Which tokens a program has: a part of one sample's, packed or not.

Unpacked, every sample has as many parts. Packed, lengths are known on the device alone, so that
there are places for more parts than there may be: those of sample s begin at place
⌊begin(s) / part⌋ + s, and ⌊(a + n) / part⌋ − ⌊a / part⌋ + 1 ≥ ⌈n / part⌉ places follow, enough for
its n tokens. A program at a place without tokens has nothing to do.
"""

import triton
import triton.language as tl
from torch import Tensor

from ropewalk.kernels.sizes import ceil_divide


def places(samples: int, tokens: int, part: int, cu_seqlens: Tensor | None) -> int:
    """How many programs there are.

    Args:
        samples: how many there are.
        tokens: of a row of the batch.
        part: tokens of a program.
        cu_seqlens: where packed samples begin.
    """
    if cu_seqlens is None:
        return samples * ceil_divide(tokens, part)
    return tokens // part + samples


@triton.jit
def find_part(place, cu_seqlens, samples, tokens, part, SEARCHED: tl.constexpr):
    """(sample, row of the batch, first token, end of the tokens); no token where there is no part.

    64-bit, because tensors may exceed 2^31 elements.
    A search that halves would wait for memory at every step; all bounds are read at once.
    """
    if cu_seqlens is None:
        parts = tl.cdiv(tokens, part)
        sample = place // parts
        start = (place - sample * parts) * part
        stop = tl.minimum(start + part, tokens)
        row = sample
    else:
        before = tl.zeros((SEARCHED,), tl.int32)
        for first in range(0, samples, SEARCHED):
            index = first + tl.arange(0, SEARCHED)
            begins = tl.load(cu_seqlens + index, mask=index < samples, other=0).to(tl.int32)
            before += ((begins // part + index <= place) & (index < samples)).to(tl.int32)
        sample = tl.sum(before, axis=0) - 1
        begin = tl.load(cu_seqlens + sample).to(tl.int32)
        end = tl.load(cu_seqlens + sample + 1).to(tl.int32)
        start = begin + (place - begin // part - sample) * part
        stop = tl.minimum(start + part, end)
        row = sample * 0
    return sample.to(tl.int64), row.to(tl.int64), start.to(tl.int64), stop.to(tl.int64)


@triton.jit
def find_places(sample, cu_seqlens, tokens, part):
    """(first place, number of parts) of a sample."""
    if cu_seqlens is None:
        count = tl.cdiv(tokens, part)
        first = sample * count
    else:
        begin = tl.load(cu_seqlens + sample).to(tl.int32)
        end = tl.load(cu_seqlens + sample + 1).to(tl.int32)
        count = tl.cdiv(end - begin, part)
        first = begin // part + sample
    return first, count
