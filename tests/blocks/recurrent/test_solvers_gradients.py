"""Gradients of a solution are those of unrolled autograd, however it was found."""

import pytest
import torch
from torch import nn

from ropewalk.blocks.recurrent.cells import FunctionCell, GRUCell
from ropewalk.blocks.recurrent.solvers import METHODS, iterate, solve

F64 = torch.float64
CELLS = ["tanh", "tanh diagonal", "gru diagonal", "lstm diagonal", "gru", "lstm", "function"]
RAGGED = [0, 9, 9, 10, 24]
every_cell = pytest.mark.parametrize("name", CELLS)
ragged = pytest.mark.parametrize("cu", [None, RAGGED], ids=["batch", "ragged"])


def leaves_of(cell, inputs, initial):
    """What gradients are wanted of, also what a function closes over."""
    found = [inputs.requires_grad_(), initial.requires_grad_(), *cell.parameters()]
    return [*found, cell.closed_over] if hasattr(cell, "closed_over") else found


def weighted(states):
    """A sum in which every state counts differently."""
    generator = torch.Generator().manual_seed(5)
    return (states * torch.randn(states.shape, generator=generator).to(states)).sum()


def relative(got, expected):
    scale = max(float(x.detach().norm()) for x in expected)
    return max(float((a - b).norm()) for a, b in zip(got, expected, strict=True)) / scale


@every_cell
@ragged
@pytest.mark.usefixtures("warned_freely")
def test_gradients_are_those_of_unrolled_autograd(make_cell, draw, unrolled, name, cu):
    cell = make_cell(name)
    inputs, initial, cu = draw(cell, cu=cu)
    leaves = leaves_of(cell, inputs, initial)
    expected = torch.autograd.grad(weighted(unrolled(cell, inputs, initial, cu)), leaves)
    for method in ["auto", *METHODS]:
        states, _ = solve(cell, inputs, initial, method=method, cu_seqlens=cu)
        got = torch.autograd.grad(weighted(states), leaves)
        for leaf, a, b in zip(leaves, got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=f"{method}, {leaf.shape}")


@every_cell
@pytest.mark.parametrize("method", ["auto", "newton"])
def test_gradcheck(make_cell, draw, name, method):
    cell = make_cell(name, F64)
    inputs, initial, _ = draw(cell, F64, time=5)
    leaves = leaves_of(cell, inputs, initial)

    def function(inputs, initial, *_):
        return solve(cell, inputs, initial, method=method, tolerance=1e-13)[0]

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("name", ["gru", "lstm diagonal"])
def test_gradcheck_of_packed_sequences(make_cell, draw, name):
    cell = make_cell(name, F64)
    inputs, initial, cu = draw(cell, F64, time=6, cu=[0, 2, 2, 6])

    def function(inputs, initial):
        return solve(cell, inputs, initial, method="newton", cu_seqlens=cu)[0]

    assert torch.autograd.gradcheck(function, (inputs.requires_grad_(), initial.requires_grad_()))


@every_cell
def test_the_last_state_has_gradients_too(make_cell, draw, unrolled, name):
    cell = make_cell(name, F64)
    inputs, initial, _ = draw(cell, F64)
    leaves = leaves_of(cell, inputs, initial)
    expected = torch.autograd.grad(
        weighted(unrolled(cell, inputs, initial)[:, -1]), leaves, materialize_grads=True
    )
    states, _ = solve(cell, inputs, initial, method="newton")
    got = torch.autograd.grad(weighted(states[:, -1]), leaves, materialize_grads=True)
    assert relative(got, expected) < 1e-9


def test_the_diagonal_gradient_is_biased(make_cell, draw, unrolled):
    """Only on request, and this is what it costs: see the figures in `gradients`."""
    torch.manual_seed(0)
    cell = GRUCell(8, 32, bounded=False)
    with torch.no_grad():
        cell.weight_hh.normal_(0, 1.5 / 32**0.5)
    inputs, initial = torch.randn(2, 64, 8), torch.zeros(2, 32)
    leaves = leaves_of(cell, inputs, initial)
    expected = torch.autograd.grad(weighted(unrolled(cell, inputs, initial)), leaves)
    errors = {}
    for gradient in ("implicit", "diagonal"):
        states, _ = solve(cell, inputs, initial, method="newton", gradient=gradient)
        errors[gradient] = relative(torch.autograd.grad(weighted(states), leaves), expected)
    assert errors["implicit"] < 1e-4
    assert errors["diagonal"] > 0.2


@pytest.mark.parametrize("name", ["gru diagonal", "tanh diagonal"])
def test_the_diagonal_gradient_of_a_diagonal_cell_is_exact(make_cell, draw, unrolled, name):
    cell = make_cell(name, F64)
    inputs, initial, _ = draw(cell, F64)
    leaves = leaves_of(cell, inputs, initial)
    expected = torch.autograd.grad(weighted(unrolled(cell, inputs, initial)), leaves)
    for method in ("auto", "newton", "sequential"):
        states, _ = solve(cell, inputs, initial, method=method, gradient="diagonal")
        assert relative(torch.autograd.grad(weighted(states), leaves), expected) < 1e-9


def test_a_module_in_a_function_learns():
    """Parameters of a module that the function calls, by an optimiser."""
    torch.manual_seed(0)
    mix = nn.Linear(4, 4)
    cell = FunctionCell(lambda h, x: torch.tanh(mix(h) + x), 4, structure="dense")
    inputs, target = torch.randn(4, 20, 4), torch.randn(4, 20, 4).clamp(-0.5, 0.5)
    optimiser = torch.optim.Adam(mix.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = (solve(cell, inputs, method="newton")[0] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


def test_without_gradients_there_is_no_graph(make_cell, draw):
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell)
    with torch.no_grad():
        assert not solve(cell, inputs, initial, method="newton")[0].requires_grad
    with torch.inference_mode():
        assert not solve(cell, inputs, initial, method="newton")[0].requires_grad
    cell.requires_grad_(False)
    assert not solve(cell, inputs, initial, method="newton")[0].requires_grad
    inputs.requires_grad_()
    assert solve(cell, inputs, initial, method="newton")[0].requires_grad


def test_nothing_of_the_iterations_is_kept(make_cell, draw):
    """The graph is one step of the cell, however many iterations there were."""
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell)
    states, info = solve(cell, inputs, initial, method="quasi")
    assert info.iterations > 5
    names, todo = [], [states.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            names.append(node.name())
            todo += [parent for parent, _ in node.next_functions]
    assert names.count("TanhBackward0") <= 4
    assert "_ImplicitBackward" in names


@every_cell
def test_iterates_are_differentiated_as_they_are(make_cell, draw, name):
    """By autograd through the iterations: not the solution's gradient, but the iterates' own."""
    cell = make_cell(name, F64)
    inputs, initial, _ = draw(cell, F64, time=4)
    for method in ("newton", "fixed", "elk"):

        def function(inputs, initial, method=method):
            return iterate(cell, inputs, initial, method=method, iterations=2)

        assert torch.autograd.gradcheck(
            function, (inputs.requires_grad_(), initial.requires_grad_()), fast_mode=True
        )


def test_enough_iterations_have_the_gradient_of_the_solution(make_cell, draw, unrolled):
    cell = make_cell("gru", F64)
    inputs, initial, _ = draw(cell, F64)
    leaves = leaves_of(cell, inputs, initial)
    expected = torch.autograd.grad(weighted(unrolled(cell, inputs, initial)), leaves)
    states = iterate(cell, inputs, initial, method="newton", iterations=8)
    assert relative(torch.autograd.grad(weighted(states), leaves), expected) < 1e-9
