"""A batch of recurrences of one length, by chunks of time that are computed side by side.

Three sweeps: within all chunks at once from a zero state, with the products of the coefficients so
far; from chunk to chunk, in as many steps as there are chunks; and each chunk's first state times
those products is added. That is 2 · steps + chunks calls of torch in the place of as many as there
are steps of time. Wide batches fill a call by themselves and are run step by step, which moves the
fewest bytes.

A product may overflow where the recurrence does not, from a state of zero or a tiny one. Chunks are
then cut shorter, down to single steps, so that what is finite step by step is finite here.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ropewalk.kernels.linear_scan.problem import Structure
from ropewalk.kernels.linear_scan.reference.structures import add_product, advance, compose

LONGEST = 64
"""Steps of a chunk."""
WIDE = 4096
"""Numbers of a step from which a call of torch is no longer dominated by its overhead."""
SHORTEST = 4
"""Steps of a chunk; below that single steps are taken."""
SHORT = 48
"""Steps of time up to which chunks save no calls."""
MATRIX = 16
"""Channels up to which composing dense matrices costs less than the calls it saves."""


def scan(structure: Structure, a: Tensor, b: Tensor, initial: Tensor, *, reverse: bool) -> Tensor:
    """States of all steps.

    Args:
        structure: of the coefficients.
        a: (batch, time, …) in the dtype of the states.
        b: (batch, time, …).
        initial: (batch, …).
        reverse: whether time runs backwards.
    """
    states = torch.empty_like(b, memory_format=torch.contiguous_format)
    time, steps, whole = b.shape[1], _steps(structure, b), 0
    while not whole and SHORTEST <= steps <= time:
        chunks = time // steps
        tried = chunks * steps
        part = slice(time - tried, time) if reverse else slice(0, tried)
        cut = [x[:, part].unflatten(1, (chunks, steps)) for x in (a, b, states)]
        last = _in_chunks(structure, cut[0], cut[1], cut[2], initial, reverse=reverse)
        if last is not None:
            initial, whole = last, tried
        steps //= 4
    # What is left over is run last: at the end of time, or at its beginning.
    rest = slice(0, time - whole) if reverse else slice(whole, time)
    _step_by_step(structure, a[:, rest], b[:, rest], states[:, rest], initial, reverse=reverse)
    return states


def _steps(structure: Structure, b: Tensor) -> int:
    """Of a chunk; more than there are if there is to be none."""
    time, width = b.shape[1], b.shape[0] * b.shape[2:].numel()
    never = time + 1
    if time <= SHORT or (width >= WIDE and structure != "dense"):
        return never
    if structure == "dense" and b.shape[-1] > MATRIX:
        return never
    return min(LONGEST, int((time / 2) ** 0.5))


def _step_by_step(
    structure: Structure, a: Tensor, b: Tensor, states: Tensor, x: Tensor, *, reverse: bool
) -> None:
    """Fills states, from the state x before them."""
    times = range(b.shape[1])
    for t in reversed(times) if reverse else times:
        x = advance(structure, a[:, t], x, b[:, t], states[:, t])


def _in_chunks(
    structure: Structure, a: Tensor, b: Tensor, states: Tensor, x: Tensor, *, reverse: bool
) -> Tensor | None:
    """Fills states, all (batch, chunks, steps, …), and gives the last one.

    None if a product overflows: times a state of zero it would be what no step gives.
    """
    products = torch.empty_like(a, memory_format=torch.contiguous_format)
    steps, chunks = range(a.shape[2]), range(a.shape[1])
    order, chunk_order = (
        (list(reversed(steps)), list(reversed(chunks))) if reverse else (list(steps), list(chunks))
    )
    start = order[0]
    products[:, :, start].copy_(a[:, :, start])
    states[:, :, start].copy_(b[:, :, start])
    for before, t in pairwise(order):
        compose(structure, a[:, :, t], products[:, :, before], products[:, :, t])
        advance(structure, a[:, :, t], states[:, :, before], b[:, :, t], states[:, :, t])
    end = order[-1]
    if _overflow(products, a, end, reverse=reverse):
        return None
    first_states = torch.empty_like(states[:, :, end])
    for chunk in chunk_order:
        first_states[:, chunk].copy_(x)
        x = torch.empty_like(x)
        advance(
            structure,
            products[:, chunk, end],
            first_states[:, chunk],
            states[:, chunk, end],
            x,
        )
    add_product(structure, states, products, first_states.unsqueeze(2))
    return x


def _overflow(products: Tensor, a: Tensor, end: int, *, reverse: bool) -> bool:
    """Whether some product is not finite, and not because a coefficient before it is no number.

    Not looked at while a CUDA graph is captured, which cannot read.
    """
    if products.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    # No further step makes a product finite again, so that the last ones tell of all.
    if bool(products[:, :, end].isfinite().all()):
        return False
    lost = a.isnan()
    lost = lost.flip(2).cumsum(2).flip(2) if reverse else lost.cumsum(2)
    return bool((~products.isfinite() & (lost == 0)).any())
