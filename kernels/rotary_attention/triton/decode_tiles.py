"""Scores of one tile of cached keys, rotated in registers on the way from memory to the product.

    ⟨q, R^j k⟩ = Σ_pairs q_a (k_a cos jθ − k_b sin jθ) + q_b (k_b cos jθ + k_a sin jθ) + Σ_rest q k

The two halves of the pairs are two tiles of half the width, each with its own product, so that no
value has to cross to another thread; dimensions that a partial rotary leaves alone are a third.
"""

# Triton reads a kernel's tuples, whose types a checker cannot infer.
# pyright: reportGeneralTypeIssues=false
import triton
import triton.language as tl

from ropewalk.kernels.rotary_attention.triton.angles import sine_cosine
from ropewalk.kernels.rotary_attention.triton.pairs import load_rows, load_tile


@triton.jit
def aligned(stride, UNIT: tl.constexpr):
    """The stride itself, which the compiler then knows to be a multiple of UNIT."""
    return stride // UNIT * UNIT


@triton.jit
def load_query(
    query, rows, here, TURNED: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_BLOCK: tl.constexpr,
    PAIRS: tl.constexpr, PAIR_BLOCK: tl.constexpr, REST_BLOCK: tl.constexpr,
    INTERLEAVED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """First and second dimensions of the pairs, and the rest; the whole three times if not TURNED.

    Args:
        query: pointer to the rotated queries of a branch.
        rows: offset of each row, `here` which of them exist.
    """
    if TURNED:
        pairs = tl.arange(0, PAIR_BLOCK)
        first = 2 * pairs if INTERLEAVED else pairs
        second = first + 1 if INTERLEAVED else first + PAIRS
        at = query + rows[:, None]
        inside = here[:, None] & (pairs < PAIRS)[None, :]
        query_a = tl.load(at + first[None, :], mask=inside, other=0.0)
        query_b = tl.load(at + second[None, :], mask=inside, other=0.0)
        query_a = query_a.to(tl.float32) if UPCAST else query_a
        query_b = query_b.to(tl.float32) if UPCAST else query_b
        query_rest = query_a
        if HEAD_DIM > 2 * PAIRS:
            query_rest = load_rows(
                query + 2 * PAIRS, rows, 1, tl.arange(0, REST_BLOCK), here,
                HEAD_DIM - 2 * PAIRS, REST_BLOCK, True, UPCAST,
            )  # fmt: skip
        return query_a, query_b, query_rest
    else:  # noqa: RET505 – each return must end a branch that is compiled alone
        whole = load_rows(
            query, rows, 1, tl.arange(0, HEAD_BLOCK), here, HEAD_DIM, HEAD_BLOCK, True, UPCAST
        )
        return whole, whole, whole


@triton.jit
def load_pairs(
    key, column, row, there, PAIRS: tl.constexpr, PAIR_BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr, INTERLEAVED: tl.constexpr, CHECKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """First and second dimensions of the pairs of a tile of keys, (keys, pairs) each."""
    if INTERLEAVED:
        # Neighbours in memory are read together and parted in registers.
        both = load_tile(
            key, column, row, tl.arange(0, 2 * PAIR_BLOCK), there,
            2 * PAIRS, COLUMNS, 2 * PAIR_BLOCK, CHECKED, False, UPCAST,
        )  # fmt: skip
        first, second = tl.split(tl.reshape(both, [COLUMNS, PAIR_BLOCK, 2]))
    else:
        pairs = tl.arange(0, PAIR_BLOCK)
        first = load_tile(
            key, column, row, pairs, there, PAIRS, COLUMNS, PAIR_BLOCK, CHECKED, False, UPCAST
        )
        second = load_tile(
            key + PAIRS,
            column,
            row,
            pairs,
            there,
            PAIRS,
            COLUMNS,
            PAIR_BLOCK,
            CHECKED,
            False,
            UPCAST,
        )
    return first, second


@triton.jit
def tile_scores(
    query_a, query_b, query_rest, key, key_angles, frequencies, column, key_row, there,
    TURNED: tl.constexpr, CHECKED: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEAD_BLOCK: tl.constexpr, PAIRS: tl.constexpr, PAIR_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr, COLUMNS: tl.constexpr, INTERLEAVED: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of queries with the keys from `column` on, rotated there if TURNED.

    Args:
        query_a: from `load_query`, as `query_b` and `query_rest`.
        key: pointer to the first key, unrotated.
        key_angles: pointer to the first key's position in this branch; not read unless TURNED.
        frequencies: inverse frequencies, (PAIR_BLOCK,).
        there: which keys exist; looked at if CHECKED.
    """
    if TURNED:
        key_a, key_b = load_pairs(
            key, column, key_row, there, PAIRS, PAIR_BLOCK, COLUMNS, INTERLEAVED, CHECKED, UPCAST
        )
        at = key_angles + column + tl.arange(0, COLUMNS)
        place = tl.load(at, mask=there, other=0.0) if CHECKED else tl.load(at)
        sine, cosine = sine_cosine(place[:, None] * frequencies[None, :])
        a = key_a.to(tl.float32)
        b = key_b.to(tl.float32)
        turned_a = (a * cosine - b * sine).to(key_a.dtype)
        turned_b = (b * cosine + a * sine).to(key_b.dtype)
        scores = tl.dot(query_a, tl.trans(turned_a), input_precision=PRECISION)
        scores = tl.dot(query_b, tl.trans(turned_b), scores, input_precision=PRECISION)
        if HEAD_DIM > 2 * PAIRS:
            rest = load_tile(
                key + 2 * PAIRS, column, key_row, tl.arange(0, REST_BLOCK), there,
                HEAD_DIM - 2 * PAIRS, COLUMNS, REST_BLOCK, CHECKED, False, UPCAST,
            )  # fmt: skip
            scores = tl.dot(query_rest, tl.trans(rest), scores, input_precision=PRECISION)
    else:
        tile = load_tile(
            key, column, key_row, tl.arange(0, HEAD_BLOCK), there,
            HEAD_DIM, COLUMNS, HEAD_BLOCK, CHECKED, False, UPCAST,
        )  # fmt: skip
        scores = tl.dot(query_a, tl.trans(tile), input_precision=PRECISION)
    return scores
