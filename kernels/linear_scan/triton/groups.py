"""Time inside a program: groups of neighbouring rows, each walked by its own threads.

A tile of GROUPS · ROWS steps lies in registers as ROWS tensors (GROUPS, CHANNELS), so that row i of
group g is step g · ROWS + i and a thread has all rows of its groups and channels. It walks them one
after another, a multiplication and an addition each, which is exact to their rounding and needs no
words with other threads. Only where the groups' walks meet do threads scan: each group has the
coefficient and the end of its walk from zero, and an associative scan along the groups gives the
state before each of them. So a scan's shuffles and barriers are paid once in ROWS steps.

A map is a pair (A, B): x ↦ A x + B. The scan is of pairs of maps, of all groups up to one and of
all but that one: (c, e) then (c′, e′) is (c′ ∘ c, e′ ∘ c), where the e of one group is the
identity. A gather of the neighbour's end would do as well, but it makes the compiler lay out every
row for itself, and so a conversion of each row that is loaded.

With one group there is nothing to scan, and steps are taken one after another as written.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl

from ropewalk.kernels.linear_scan.triton.structures import (
    OF_PRODUCT,
    OF_STATE,
    add,
    apply,
    compose,
    identity,
    zero,
)


@triton.jit
def _through(a, b, x, y, STRUCTURE: tl.constexpr):
    """The map (a, b) after the map (x, y)."""
    return (
        compose(a, x, STRUCTURE, OF_PRODUCT),
        add(apply(a, y, STRUCTURE, OF_STATE), b, STRUCTURE),
    )


@triton.jit
def _then_real(a, b, e, f, p, q, r, s):
    c = _through((p,), (q,), (a,), (b,), "real")
    d = _through((r,), (s,), (a,), (b,), "real")
    return c[0][0], c[1][0], d[0][0], d[1][0]


@triton.jit
def _then_complex(a0, a1, b0, b1, e0, e1, f0, f1, p0, p1, q0, q1, r0, r1, s0, s1):
    c = _through((p0, p1), (q0, q1), (a0, a1), (b0, b1), "complex")
    d = _through((r0, r1), (s0, s1), (a0, a1), (b0, b1), "complex")
    return c[0][0], c[0][1], c[1][0], c[1][1], d[0][0], d[0][1], d[1][0], d[1][1]


@triton.jit
def _then_block2(
    a0, a1, a2, a3, b0, b1, e0, e1, e2, e3, f0, f1,
    p0, p1, p2, p3, q0, q1, r0, r1, r2, r3, s0, s1,
):  # fmt: skip
    c = _through((p0, p1, p2, p3), (q0, q1), (a0, a1, a2, a3), (b0, b1), "block2")
    d = _through((r0, r1, r2, r3), (s0, s1), (a0, a1, a2, a3), (b0, b1), "block2")
    return (
        c[0][0], c[0][1], c[0][2], c[0][3], c[1][0], c[1][1],
        d[0][0], d[0][1], d[0][2], d[0][3], d[1][0], d[1][1],
    )  # fmt: skip


@triton.jit
def scan_groups(
    product, end, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, STRUCTURE: tl.constexpr
):
    """Maps (products, ends) of the groups up to each, and of those before each.

    Args:
        product: the groups' coefficients.
        end: what each ends with if it begins with zero.
    """
    one = identity(GROUPS, CHANNELS, STRUCTURE)
    none = zero(GROUPS, CHANNELS, STRUCTURE)
    if STRUCTURE == "real":
        x = tl.associative_scan((product[0], end[0], one[0], none[0]), 0, _then_real)
        upto, before = ((x[0],), (x[1],)), ((x[2],), (x[3],))
    elif STRUCTURE == "complex":
        given = (product[0], product[1], end[0], end[1], one[0], one[1], none[0], none[1])
        x = tl.associative_scan(given, 0, _then_complex)
        upto, before = ((x[0], x[1]), (x[2], x[3])), ((x[4], x[5]), (x[6], x[7]))
    else:
        given = (
            product[0], product[1], product[2], product[3], end[0], end[1],
            one[0], one[1], one[2], one[3], none[0], none[1],
        )  # fmt: skip
        x = tl.associative_scan(given, 0, _then_block2)
        upto = ((x[0], x[1], x[2], x[3]), (x[4], x[5]))
        before = ((x[6], x[7], x[8], x[9]), (x[10], x[11]))
    return upto, before


@triton.jit
def last_group(x, GROUPS: tl.constexpr, CHANNELS: tl.constexpr):
    """The last group's row in all rows of a tuple's tensors."""
    last = (tl.arange(0, GROUPS) == GROUPS - 1)[:, None]
    y = ()
    for part in tl.static_range(len(x)):
        row = tl.sum(tl.where(last, x[part], 0.0), axis=0)
        y += (tl.broadcast_to(row[None, :], [GROUPS, CHANNELS]),)
    return y


@triton.jit
def entries(
    product, end, carry, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, STRUCTURE: tl.constexpr
):
    """The state before each group, and in all rows the one after the last.

    Args:
        product: the groups' coefficients.
        end: what each ends with if it begins with zero.
        carry: the state before the first, the same in all rows.
    """
    upto, before = scan_groups(product, end, GROUPS, CHANNELS, STRUCTURE)
    after = add(apply(upto[0], carry, STRUCTURE, OF_STATE), upto[1], STRUCTURE)
    entry = add(apply(before[0], carry, STRUCTURE, OF_STATE), before[1], STRUCTURE)
    return entry, last_group(after, GROUPS, CHANNELS)
