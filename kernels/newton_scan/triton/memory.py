"""A step's inputs and the weights as tuples in registers, float32 from the load on."""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl


@triton.jit
def load_parts(at, part, inside, COUNT: tl.constexpr):
    """COUNT tensors that lie `part` apart, 0 outside."""
    x = ()
    for index in tl.static_range(COUNT):
        value = tl.load(at + index * part, mask=inside, other=0.0)
        x += (value.to(tl.float32),)
    return x


@triton.jit
def greatest(x, y):
    """The greater magnitude of each place of two tuples' differences; NaN is ∞, NaN of both 0."""
    found = tl.zeros_like(x[0])
    for part in tl.static_range(len(x)):
        size = tl.abs(x[part] - y[part])
        known = tl.where((x[part] != x[part]) & (y[part] != y[part]), 0.0, float("inf"))
        found = tl.maximum(found, tl.where(size == size, size, known))
    return found
