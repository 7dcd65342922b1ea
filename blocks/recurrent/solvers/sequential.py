"""One step after another, in torch: what parallel solutions are compared with, and fall back on."""

import torch
from torch import Tensor

from ropewalk.blocks.recurrent.solvers.system import System


def sequential(system: System) -> Tensor:
    """All states, (batch, time, *state_shape); of packed sequences all in step."""
    layout = system.layout
    if layout.cu_seqlens is None:
        state, states = system.initial, []
        for t in range(layout.time):
            state = system.cell.step(state, system.drive[:, t])
            states.append(state)
        return torch.stack(states, 1) if states else system.guess()
    return _packed(system, layout.cu_seqlens)


def _packed(system: System, cu_seqlens: Tensor) -> Tensor:
    """Longest sequence first, so that those that still run are always the first ones."""
    lengths = cu_seqlens.diff()
    order = torch.argsort(lengths, descending=True, stable=True)
    starts, state = cu_seqlens[:-1][order], system.initial[order]
    drive = system.drive[0]
    states, places = [], []
    remaining = lengths[order].tolist()
    running = len(remaining)
    for t in range(max(remaining, default=0)):
        while remaining[running - 1] <= t:
            running -= 1
        at = starts[:running] + t
        state = system.cell.step(state[:running], drive[at])
        states.append(state)
        places.append(at)
    if not states:
        return system.guess()
    # A permutation, whose inverse puts every state in its place.
    return torch.cat(states)[torch.argsort(torch.cat(places))][None]
