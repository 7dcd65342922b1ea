"""Sequences of different lengths: the last state of each, and torch's packed form.

`PackedSequence` holds all first steps, then all second ones, longest sequence first; a scan wants
one sequence after another along time, with their boundaries `cu_seqlens`. Both hold the same rows
without padding, so that one index leads from one to the other. `batch_sizes` lies on the CPU, and
so nothing here waits for a device.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int, Num
from torch import Tensor


def final_states(
    states: Num[Tensor, "batch time ..."],
    initial_state: Num[Tensor, "sequences ..."] | None,
    cu_seqlens: Int[Tensor, " boundaries"] | None = None,
) -> Num[Tensor, "sequences ..."]:
    """The state after the last step of each sequence; of an empty one its initial state.

    Args:
        states: after each step.
        initial_state: before the first; zeros if None.
        cu_seqlens: where sequences begin and end along the time of a single batch; None if each
            row of the batch is a sequence.

    Returns:
        In the dtype of `states`; differentiable.
    """
    batch, time, *shape = states.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if time > 0 and cu_seqlens is None:
        return states[:, -1]
    if initial_state is None:
        before = states.new_zeros(sequences, *shape)
    else:
        before = initial_state.to(states.dtype)
    if time == 0 or cu_seqlens is None:
        return before
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    last = states[0].index_select(0, (ends - 1).clamp(min=0))
    empty = (starts == ends).view(-1, *[1] * len(shape))
    return torch.where(empty, before, last)


@dataclass(frozen=True)
class Ragged:
    """How the rows of a `PackedSequence` lie when sequences follow one another.

    Attributes:
        cu_seqlens: (sequences + 1,) int32, longest sequence first.
        order: row of the packed data for each row of the ragged.
        back: the inverse of `order`.
        reverse: row of the ragged data for each row of it with every sequence turned around.
    """

    cu_seqlens: Int[Tensor, " boundaries"]
    order: Int[Tensor, " rows"]
    back: Int[Tensor, " rows"]
    reverse: Int[Tensor, " rows"]

    @classmethod
    def of(cls, batch_sizes: Int[Tensor, " time"], device: torch.device) -> "Ragged":
        """From the `batch_sizes` of a packed sequence."""
        sizes = batch_sizes.to(torch.int64)
        sequences = int(sizes[0])
        lengths = (sizes[:, None] > torch.arange(sequences)).sum(0)
        cu_seqlens = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        owner = torch.repeat_interleave(torch.arange(sequences), lengths)
        step = torch.arange(len(owner)) - cu_seqlens[:-1][owner]
        order = (sizes.cumsum(0) - sizes)[step] + owner
        reverse = cu_seqlens[:-1][owner] + lengths[owner] - 1 - step
        moved = (x.to(device) for x in (cu_seqlens.int(), order, torch.argsort(order), reverse))
        return cls(*moved)
