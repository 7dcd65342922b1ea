"""Sine and cosine in float32, by polynomials.

    angle = n·π/2 + r, |r| ≤ π/4;  polynomials of r, then swapped and signed by n mod 4

The reduction subtracts n·π/2 in three parts (Cody and Waite, Software Manual for the Elementary
Functions, 1980). On a GPU each product is fused into its subtraction, and the first has few enough
bits to be exact: the error stays below 2e-7 up to angles of 1e5 radians. The interpreter rounds the
products, to 5e-6 there and 1e-2 at 1e6, where a float32 angle itself is good to 6e-2.

The compiler's own sine and cosine carry a slow path for huge angles with a table in local memory,
and cannot share the reduction between the two.
"""

import triton
import triton.language as tl


@triton.jit
def sine_cosine(angle):
    """(sin, cos) of a float32 tensor, radians."""
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    r = angle - quarters * 1.5703125
    r = r - quarters * 4.837512969970703125e-4
    r = r - quarters * 7.549789948768648e-8
    square = r * r
    sine = square * -1.9515295891e-4 + 8.3321608736e-3
    sine = (sine * square - 1.6666654611e-1) * square * r + r
    cosine = square * 2.443315711809948e-5 - 1.388731625493765e-3
    cosine = (cosine * square + 4.166664568298827e-2) * square * square - 0.5 * square + 1.0
    quadrant = quarters.to(tl.int32) & 3
    swapped = (quadrant & 1) == 1
    sine, cosine = tl.where(swapped, cosine, sine), tl.where(swapped, sine, cosine)
    sine = tl.where(quadrant >= 2, -sine, sine)
    cosine = tl.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)
    return sine, cosine
