"""Where sequences lie, and rows of them between memory and registers.

Channels are neighbours in memory. Complex numbers lie as pairs (real, imaginary), so a row of
CHANNELS of them is loaded as 2 · CHANNELS numbers and taken apart in registers: `columns` counts
these numbers. Values are float32 from the load on: Triton's interpreter computes bfloat16 wrongly,
and states are to be float32 anyway. Pointers are 64-bit and advance by a step at a time, which is
an addition for each access, where a multiple of the stride would be several instructions, or
registers for all rows' offsets.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl


@triton.jit
def span(cu_seqlens, sequence, time, PACKED: tl.constexpr):
    """(row of the batch, first step, number of steps) of a sequence."""
    if PACKED:
        first = tl.load(cu_seqlens + sequence).to(tl.int64)
        length = (tl.load(cu_seqlens + sequence + 1) - first).to(tl.int32)
        batch = first * 0
    else:
        batch = sequence.to(tl.int64)
        first = batch * 0
        length = sequence * 0 + time  # a number 1 would be a constant, unlike any other
    return batch, first, length


@triton.jit
def origin(first, length, BACKWARDS: tl.constexpr):
    """Where in memory the walk's first step is."""
    at = first
    if BACKWARDS:
        at = first + length - 1
    return at


@triton.jit
def signed(stride, BACKWARDS: tl.constexpr):
    """From a step to the next in the order of the walk, 64-bit."""
    stride = tl.cast(stride, tl.int64)
    if BACKWARDS:
        stride = -stride
    return stride


@triton.jit
def load_state(at, part, inside, STRUCTURE: tl.constexpr):
    """A state of each group and channel, 0 outside; `part` is from one part of it to the next."""
    if STRUCTURE == "complex":
        pairs = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        real, imaginary = tl.split(tl.reshape(pairs, [pairs.shape[0], pairs.shape[1] // 2, 2]))
        x = (real, imaginary)
    elif STRUCTURE == "block2":
        first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        x = (first, tl.load(at + part, mask=inside, other=0.0).to(tl.float32))
    else:
        x = (tl.load(at, mask=inside, other=0.0).to(tl.float32),)
    return x


@triton.jit
def load_coefficient(at, row, column, exists, inside, STRUCTURE: tl.constexpr):
    """A coefficient of each group and channel, 1 where its step does not exist.

    Args:
        at, inside: (GROUPS, columns) pointers, and which of them may be read.
        row, column: from a block's row, and column, to the next.
        exists: (GROUPS, 1), which steps do.
    """
    if STRUCTURE == "complex":
        pairs = load_state(at, 0, inside, STRUCTURE)
        a = (tl.where(exists, pairs[0], 1.0), pairs[1])
    elif STRUCTURE == "block2":
        a = (
            tl.load(at, mask=inside, other=1.0).to(tl.float32),
            tl.load(at + column, mask=inside, other=0.0).to(tl.float32),
            tl.load(at + row, mask=inside, other=0.0).to(tl.float32),
            tl.load(at + row + column, mask=inside, other=1.0).to(tl.float32),
        )
    else:
        a = (tl.load(at, mask=inside, other=1.0).to(tl.float32),)
    return a


@triton.jit
def store_parts(at, part, x, inside, STRUCTURE: tl.constexpr):
    """Writes a state, or a coefficient whose parts lie at the same distances."""
    if STRUCTURE == "complex":
        pairs = tl.join(x[0], x[1])
        flat = tl.reshape(pairs, [pairs.shape[0], pairs.shape[1] * 2])
        tl.store(at, flat.to(at.dtype.element_ty), mask=inside)
    else:
        for index in tl.static_range(len(x)):
            value = x[index].to(at.dtype.element_ty)
            tl.store(at + index * part, value, mask=inside)
