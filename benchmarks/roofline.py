"""How much work a problem is, and how fast the device could do it.

    floor = max(flop / matrix-product rate, bytes / copy bandwidth)

No implementation runs much below its floor; a measured time over it is the gap. Both ceilings are
measured in the same run: a copy larger than any cache (bytes read plus bytes written), and a large
matrix product in the suite's dtype on random data.

Counted are visible pairs only, 4·d operations a pair and query head forward (two products of
length d), and 2.5 times that again backward (five products: the scores anew, dp, dq, dk, dv). The
rotation is not counted: it is linear in the length. Bytes are inputs read once and outputs written
once; a backward pass reads the forward's output and logsumexp too.

A vocabulary loss is 2·tokens·dim·vocabulary operations forward, the logits, and twice that again
backward, the gradients of hidden states and of the weight. Computing the logits anew, as a loss
that does not keep them must, is no part of the least work: such a loss reaches 3/4 of the floor.
"""

import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from benchmarks.case import Call, Work

if TYPE_CHECKING:
    from benchmarks.denoiser import ModelShape
    from benchmarks.denoiser_ops import OpShape

BACKWARD_OVER_FORWARD = 2.5


class Ceilings(NamedTuple):
    """What the device reached in this run.

    Attributes:
        copy_gb_s: bytes read plus bytes written, 10⁹ a second.
        matmul_tflop_s: of a large matrix product.
        dtype: of that product.
    """

    copy_gb_s: float
    matmul_tflop_s: float
    dtype: str


def visible_pairs(queries: int, keys: int) -> int:
    """Pairs of a causal attention whose last query sits at the last key; no more queries than keys.

    The last query sees all keys, the one before one fewer, and so on.
    """
    return queries * keys - queries * (queries - 1) // 2


def attention_work(
    *,
    batch: int,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    head_dim: int,
    itemsize: int,
    backward: bool,
) -> Work:
    """Work of causal attention; value heads as wide as keys'."""
    flop = 4.0 * head_dim * batch * heads * visible_pairs(queries, keys)
    query_bytes = float(batch * heads * queries * head_dim * itemsize)
    key_bytes = float(batch * kv_heads * keys * head_dim * itemsize)
    moved = 2 * query_bytes + 2 * key_bytes
    if backward:
        logsumexp = 4.0 * batch * heads * queries
        flop *= 1 + BACKWARD_OVER_FORWARD
        # Forward writes lse; backward reads q, k, v, o, do, lse and writes dq, dk, dv.
        moved += 2 * logsumexp + 4 * query_bytes + 4 * key_bytes
    return Work(flop, moved)


def rotary_work(
    *, elements: int, table_elements: int, itemsize: int, backward: bool, norm: bool = False
) -> Work:
    """Work of rotating `elements` of queries and keys by a float32 table of cosines and sines.

    Three operations an element (two products, one sum); read once, written once, forward and again
    backward, where a norm before the rotation makes the backward read the inputs as well. The norm
    itself adds four operations an element and pass. The table is read once a pass.
    """
    passes = 2 if backward else 1
    moved = 2 * passes + (1 if backward and norm else 0)
    flop = (7.0 if norm else 3.0) * elements * passes
    return Work(flop, float(moved * elements * itemsize) + 4.0 * passes * table_elements)


def linear_cross_entropy_work(
    *, tokens: int, valid: int, dim: int, vocabulary: int, itemsize: int, backward: bool
) -> Work:
    """Work of a loss over a vocabulary; targets take 8 bytes.

    Args:
        tokens: of the hidden states; all are read, and all get a gradient.
        valid: tokens whose target is not ignored: only these have logits.
        dim: of the hidden states.
        vocabulary: rows of the weight.
        itemsize: bytes of a number.
        backward: whether both gradients are wanted.
    """
    products, passes = (3, 2) if backward else (1, 1)
    numbers = float((tokens + vocabulary) * dim)
    flop = 2.0 * valid * dim * vocabulary * products
    return Work(flop, passes * itemsize * numbers + 8.0 * tokens)


def context_merge_work(*, questions: int, contexts: int, vocabulary: int, itemsize: int) -> Work:
    """Work of merging contexts: all logits are read, those without context too; a row is written.

    There are no products. The merged row and the entropies are float32, the choice is 8 bytes.
    """
    read = float((contexts + 1) * vocabulary * itemsize)
    return Work(0.0, questions * (read + 4.0 * (vocabulary + contexts) + 8.0))


def monarch_work(
    *, tokens: int, inputs: int, outputs: int, parameters: int, itemsize: int, backward: bool
) -> Work:
    """Work of a Monarch product: two operations a token and parameter, and as many a gradient.

    The backward reads x, the result's gradient and the factors, and writes gradients of x and of
    the factors. What lies between the two products is not counted: it need not touch memory.
    """
    flop = 2.0 * tokens * parameters
    numbers = float(tokens * (inputs + outputs) + parameters)
    if backward:
        flop *= 3
        numbers += tokens * (2 * inputs + outputs) + 2 * parameters
    return Work(flop, numbers * itemsize)


def recurrence_work(
    *,
    steps: int,
    channels: int,
    per_step: int,
    again: int,
    per_state: int,
    weights: int,
    itemsize: int,
    projected: bool,
    backward: bool,
) -> Work:
    """Work of a recurrence that is elementwise along channels: numbers are read and written once.

    The backward reads what it needs of that once more, the states and their gradient, and writes
    gradients of all that was read. With a projection, what the gates get need not touch memory: x
    of as many channels is read instead, and the product is counted, twice that again backward.

    Args:
        steps: of all sequences.
        channels: of a state.
        per_step: numbers that a step reads for each channel.
        again: how many of them the backward reads: what is only added it does not.
        per_state: numbers that a state has for each channel.
        weights: of the recurrence.
        itemsize: bytes of a number.
        projected: whether the steps' numbers are a product with x.
        backward: whether all gradients are wanted.
    """
    states = float(steps * channels * per_state)
    read = float(steps * channels * (1 if projected else per_step)) + weights
    product = 2.0 * steps * channels**2 * per_step if projected else 0.0
    read += channels * (channels + 1) * per_step if projected else 0
    numbers = read + states
    if backward:
        not_again = 0 if projected else steps * channels * (per_step - again)
        numbers += 2 * read - not_again + 2 * states
    return Work(product * (3 if backward else 1), numbers * itemsize)


def denoiser_op_work(shape: "OpShape") -> Work:
    """Work of an op between a denoiser's products: each tensor is read once and written once.

    In tensors of batch × tokens × dim, forward and then backward; (batch, dim) vectors count too.

        adaptive-norm         x → y                      x, ∂y → ∂x
        gated-adaptive-norm   x, branch → r, y           r, branch, ∂r, ∂y → ∂x, ∂branch
        gated-activation      g, u → a                   g, u, ∂a → ∂g, ∂u
        qk-norm-rotary        q, k → q', k'              q, k, ∂q', ∂k' → ∂q, ∂k
    """
    forward, backward, vectors = {
        "adaptive-norm": (2, 3, 2),
        "gated-adaptive-norm": (4, 6, 3),
        "gated-activation": (3, 5, 0),
        "qk-norm-rotary": (4, 6, 0),
    }[shape.kind]
    numbers = forward * shape.numbers + vectors * shape.batch * shape.dim
    table = 4.0 * shape.tokens * shape.dim // shape.heads if shape.kind == "qk-norm-rotary" else 0.0
    if shape.backward:
        numbers += backward * shape.numbers + 2 * vectors * shape.batch * shape.dim
        table *= 2
    return Work(0.0, float(numbers * shape.dtype.itemsize) + table)


def denoiser_work(shape: "ModelShape") -> Work:
    """Work of a whole denoiser, of which every matrix product is counted and nothing else.

    Two operations for a multiplication and an addition; a block has 4·dim² + 2·dim·hidden of them a
    token in its linear layers, 2·tokens·dim in its attention, all to all, and 6·dim² an image for
    its modulation. Backward twice as much again: what a peer computes a second time, as attention
    does with its scores, is not counted. Bytes are the parameters read once, and their gradients
    written once.
    """
    s, outputs = shape, 2 * shape.channels * shape.patch**2
    block = s.tokens * (4 * s.dim**2 + 2 * s.dim * s.hidden + 2 * s.tokens * s.dim) + 6 * s.dim**2
    ends = s.tokens * s.dim * (s.channels * s.patch**2 + outputs)
    condition = 2 * s.dim**2 + (256 + s.dim) * s.dim
    products = s.batch * (s.depth * block + ends + condition)
    weights = s.depth * (10 * s.dim**2 + 2 * s.dim * s.hidden)
    passes = 3 if s.backward else 1
    return Work(2.0 * products * passes, float(weights * s.dtype.itemsize * passes))


def ceilings(device: str, dtype: torch.dtype, *, quick: bool = False) -> Ceilings:
    """Measures the device; `quick` takes sizes that show nothing but that it works."""
    if device == "cuda":
        copy_bytes, side = (2**20, 256) if quick else (2**32, 8192)
    else:
        copy_bytes, side = (2**20, 64) if quick else (2**29, 2048)
    return Ceilings(
        copy_gb_s=2 * copy_bytes / _copy_seconds(copy_bytes, device) / 1e9,
        matmul_tflop_s=2 * side**3 / _product_seconds(side, device, dtype) / 1e12,
        dtype=str(dtype).removeprefix("torch."),
    )


def _copy_seconds(size: int, device: str) -> float:
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _held(lambda: target.copy_(source), device)


def _product_seconds(side: int, device: str, dtype: torch.dtype) -> float:
    # Random data: a product of zeros can run faster.
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return _held(lambda: left @ right, device)


def _held(call: Call, device: str, runs: int = 10) -> float:
    """Seconds, the median of some runs after three: a rate that is held, not a lucky one."""
    times = []
    for number in range(runs + 3):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]


def rates(work: Work, milliseconds: float, measured: Ceilings) -> dict[str, float]:
    """What a time means: rates, and their shares of the floor and of the copy bandwidth."""
    gb_s = work.bytes / milliseconds / 1e6
    return {
        "tflop_s": work.flop / milliseconds / 1e9,
        "gb_s": gb_s,
        "of_floor": floor_ms(work, measured) / milliseconds,
        "of_copy": gb_s / measured.copy_gb_s,
    }


def floor_ms(work: Work, measured: Ceilings) -> float:
    """The roofline's lower bound on the time."""
    return max(work.flop / (measured.matmul_tflop_s * 1e9), work.bytes / (measured.copy_gb_s * 1e6))
