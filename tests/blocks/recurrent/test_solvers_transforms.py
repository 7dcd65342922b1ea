"""Gradients where parameters are others in the backward, or are differentiated by torch.func."""

import pytest
import torch
from torch import nn

from ropewalk.blocks.recurrent.cells import FunctionCell, GRUCell
from ropewalk.blocks.recurrent.solvers import solve

CELLS = ["tanh", "tanh diagonal", "gru diagonal", "lstm diagonal", "gru", "lstm"]
METHODS = ["auto", "newton", "sequential"]
every_cell = pytest.mark.parametrize("name", CELLS)


class Solved(nn.Module):
    """A model around a cell; `way` finds its states."""

    def __init__(self, cell, way):
        super().__init__()
        self.cell, self.way = cell, way

    def forward(self, *given):
        return self.way(self.cell, *given)


class Closed(nn.Module):
    """A model whose cell closes over a parameter that is the model's and not the cell's."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.way = nn.Parameter(torch.randn(5, 5) / 3), way
        self.cell = FunctionCell(self.next, 5, structure="dense")

    def next(self, h, x):
        return torch.tanh(h @ self.mix + x[..., :1])

    def forward(self, *given):
        return self.way(self.cell, *given)


def by(method):
    return lambda cell, inputs, initial: solve(cell, inputs, initial, method=method)[0]


def others(module):
    """Other parameters than the module's, by far."""
    torch.manual_seed(3)
    return {name: torch.randn_like(p) for name, p in module.named_parameters()}


def close(got, expected):
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def gradients(module, parameters, given):
    """By autograd, after the module has its own parameters again."""
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    states = torch.func.functional_call(module, leaves, given)
    found = torch.autograd.grad(states.square().sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def differentiated(module, parameters, given):
    """By torch.func."""

    def loss(parameters):
        return torch.func.functional_call(module, parameters, given).square().sum()

    return torch.func.grad(loss)(parameters)


@every_cell
@pytest.mark.usefixtures("warned_freely")
def test_parameters_of_a_functional_call(make_cell, draw, unrolled, name):
    """The backward runs when the cell has its own parameters again: J must be that of the call."""
    cell = make_cell(name)
    given = draw(cell)[:2]
    parameters = others(Solved(cell, None))
    expected = gradients(Solved(cell, unrolled), parameters, given)
    for method in METHODS:
        model = Solved(cell, by(method))
        close(gradients(model, parameters, given), expected)
        close(differentiated(model, parameters, given), expected)


@pytest.mark.usefixtures("warned_freely")
def test_parameters_that_a_function_closes_over(draw, unrolled):
    given = draw(Closed(None).cell)[:2]
    parameters = others(Closed(None))
    expected = gradients(Closed(unrolled), parameters, given)
    for method in METHODS:
        close(gradients(Closed(by(method)), parameters, given), expected)
        close(differentiated(Closed(by(method)), parameters, given), expected)


def test_the_jacobian_is_not_that_of_a_later_parameter(draw):
    """A parameter that is replaced, as an optimiser out of place does it."""
    model = Closed(by("newton"))
    inputs, initial, _ = draw(model.cell)
    inputs.requires_grad_()
    (expected,) = torch.autograd.grad(model(inputs, initial).sum(), inputs)
    states = model(inputs, initial)
    model.mix = nn.Parameter(torch.randn(5, 5))
    (got,) = torch.autograd.grad(states.sum(), inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_a_backward_under_autocast_scans_in_float32(make_cell, draw, name):
    cell = make_cell(name)
    inputs, initial, _ = draw(cell)
    states, _ = solve(cell, inputs, initial, method="newton")
    (expected,) = torch.autograd.grad(states.sum(), cell.bias_ih, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = torch.autograd.grad(states.sum(), cell.bias_ih)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(make_cell, draw, reentrant):
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell)
    leaves = (inputs.requires_grad_(), initial.requires_grad_())
    solved = by("newton")
    expected = torch.autograd.grad(solved(cell, *leaves).square().sum(), leaves)
    states = torch.utils.checkpoint.checkpoint(solved, cell, *leaves, use_reentrant=reentrant)
    states.square().sum().backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["newton", "sequential"])
def test_bounded_weights_are_made_once(monkeypatch, draw, method):
    """However many steps or iterations there are."""
    cell = GRUCell(3, 5)
    inputs, initial, _ = draw(cell, time=40)
    calls = []
    made = GRUCell.effective_weights
    monkeypatch.setattr(GRUCell, "effective_weights", lambda c: calls.append(c) or made(c))
    solve(cell, inputs, initial, method=method)[0].sum().backward()
    assert len(calls) == 1
