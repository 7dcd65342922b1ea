"""A fixed number of iterations is a graph that compilers take as a whole."""

import pytest
import torch

from ropewalk.blocks.recurrent.solvers import METHODS, Fixed, iterate, solve

WAYS = [name for name in METHODS if name != "sequential"]


def compiled(function, backend="eager"):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize("method", [*WAYS, Fixed(diagonalise=True)], ids=str)
def test_every_method_is_one_graph(make_cell, draw, method):
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell)

    def run(inputs, initial):
        return iterate(cell, inputs, initial, method=method, iterations=2)

    with torch.no_grad():
        torch.testing.assert_close(compiled(run)(inputs, initial), run(inputs, initial))


@pytest.mark.parametrize("name", ["gru diagonal", "gru"])
def test_gradients_compile(make_cell, draw, name):
    cell = make_cell(name)
    inputs, initial, _ = draw(cell)

    def run(inputs, initial):
        return iterate(cell, inputs, initial, method="newton", iterations=2)

    expected, states = run(inputs, initial), compiled(run, "aot_eager")(inputs, initial)
    torch.testing.assert_close(states, expected)
    got = torch.autograd.grad(states.square().sum(), cell.weight_hh)
    wanted = torch.autograd.grad(expected.square().sum(), cell.weight_hh)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_packed_iterations_compile(make_cell, draw):
    cell = make_cell("gru")
    inputs, initial, cu = draw(cell, cu=[0, 9, 9, 10, 24])

    def run(inputs, initial, cu):
        return iterate(cell, inputs, initial, method="newton", iterations=2, cu_seqlens=cu)

    with torch.no_grad():
        torch.testing.assert_close(compiled(run)(inputs, initial, cu), run(inputs, initial, cu))


def test_solving_says_that_a_compiler_has_no_numbers(make_cell, draw):
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell)
    with pytest.raises(Exception, match="numbers to look at, got a compiler"):
        compiled(lambda x, h: solve(cell, x, h)[0])(inputs, initial)
