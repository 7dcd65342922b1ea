"""Second derivatives of what can be differentiated once are refused, whatever they are asked of."""

import pytest
import torch

from ropewalk.blocks.recurrent import (
    LRU,
    FunctionCell,
    MinGRU,
    ParallelGRU,
    ParallelLSTM,
    solve,
)


@pytest.mark.parametrize("make", [ParallelGRU, ParallelLSTM, LRU, MinGRU])
def test_layers(make):
    layer, x = make(4, 6), torch.randn(2, 5, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[0].sin().sum(), x, create_graph=True)
    torch.testing.assert_close(  # which itself is as right as ever
        grad, torch.autograd.grad(layer(x)[0].sin().sum(), x)[0]
    )
    for parameter in (x, *list(layer.parameters())[:2]):
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(grad.square().sum(), parameter, retain_graph=True)


def test_solutions():
    weight = torch.nn.Parameter(0.3 * torch.randn(4, 4))
    cell = FunctionCell(lambda h, x: torch.tanh(h @ weight.T + x), 4, structure="dense")
    x = torch.randn(2, 5, 4, requires_grad=True)
    states, _ = solve(cell, x, method="newton")
    (grad,) = torch.autograd.grad(states.sin().sum(), x, create_graph=True)
    for parameter in (x, weight):
        with pytest.raises(RuntimeError, match="differentiated once"):
            torch.autograd.grad(grad.square().sum(), parameter, retain_graph=True)
