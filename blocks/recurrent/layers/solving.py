"""One layer, in one direction, as one recurrence over time."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.blocks.recurrent.cells import Cell
from ropewalk.blocks.recurrent.layers.options import IN_KERNEL
from ropewalk.blocks.recurrent.ragged import final_states
from ropewalk.blocks.recurrent.solvers import solve
from ropewalk.blocks.recurrent.solvers.iterate import iterated
from ropewalk.blocks.recurrent.solvers.kernel import scanned


def final_and_outputs(
    cell: Cell,
    data: Float[Tensor, "batch time dim"],
    state: tuple[Float[Tensor, "sequences hidden"], ...],
    cu_seqlens: Int[Tensor, " boundaries"] | None,
    options: dict[str, Any],
) -> tuple[Float[Tensor, "batch time hidden"], tuple[Float[Tensor, "sequences hidden"], ...]]:
    """Outputs and final states.

    Args:
        cell: what is stepped.
        data: the inputs.
        state: the initial one: h, or h and c. A cell has [c, h].
        cu_seqlens: where sequences begin, of packed ones.
        options: see `Options`.
    """
    initial = torch.stack(state[::-1], dim=-2).reshape(-1, *cell.state_shape)
    method, mode, window = options["method"], options["mode"], options["window"]
    if mode != "converged":
        # An overflow under a gradient scaler must not end a training: it passes, as in torch's.
        states = iterated(
            cell,
            data,
            initial,
            iterations=mode,
            method="newton" if method == "auto" else method,
            guess=None,
            cu_seqlens=cu_seqlens,
            finite=False,
        )
    elif cell.kernel is not None and method in IN_KERNEL:
        states = scanned(
            cell,
            cell.project(data),
            initial,
            algorithm=method,
            window=window,
            cu_seqlens=cu_seqlens,
            backend=options["backend"],
        ).states
    else:
        states, _ = solve(cell, data, initial, method=method, window=window, cu_seqlens=cu_seqlens)
    last = final_states(states, initial, cu_seqlens)
    parts = last.reshape(-1, len(state), cell.hidden_size).unbind(1)
    return cell.output(states), parts[::-1]
