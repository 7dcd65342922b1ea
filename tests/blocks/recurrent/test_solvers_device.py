"""The solvers where their tensors are; on a GPU auto takes other ways, to the same states."""

import copy

import pytest
import torch

from ropewalk.blocks.recurrent.cells import check_cell
from ropewalk.blocks.recurrent.solvers import METHODS, Fixed, solve

CELLS = ["tanh", "tanh diagonal", "gru diagonal", "lstm diagonal", "gru", "lstm"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cu", [None, [0, 30, 30, 31, 50]], ids=["batch", "ragged"])
@pytest.mark.usefixtures("warned_freely")
def test_states_and_gradients(make_cell, draw, unrolled, name, device, cu):
    cell = make_cell(name)
    inputs, initial, cu = draw(cell, time=50, cu=cu)
    twin = copy.deepcopy(cell).double()
    expected = unrolled(twin, inputs.double(), initial.double(), cu)
    expected.square().sum().backward()
    cell.to(device)
    inputs, initial = inputs.to(device), initial.to(device)
    cu = None if cu is None else cu.to(device)
    check_cell(cell)
    on_gpu = ["auto", *METHODS, Fixed(diagonalise=True)]
    for method in on_gpu if device == "cuda" else ["newton", "elk"]:
        cell.zero_grad()
        states, info = solve(cell, inputs, initial, method=method, cu_seqlens=cu, window=32)
        assert info.converged
        torch.testing.assert_close(states.cpu().double(), expected, rtol=0, atol=1e-5)
        states.square().sum().backward()
        for mine, theirs in zip(cell.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.cpu().double(), theirs.grad, rtol=1e-4, atol=1e-3)
