"""No weights of a bounded cell can make a state grow, and none of them stops learning."""

import pytest
import torch

from ropewalk.blocks.recurrent.cells import DiagonalGRUCell, DiagonalLSTMCell, GRUCell, TanhCell
from ropewalk.blocks.recurrent.cells.bounded import bound, unbound

CELLS = {
    "tanh": lambda **options: TanhCell(6, **options),
    "tanh diagonal": lambda **options: TanhCell(6, True, **options),
    "gru diagonal": lambda **options: DiagonalGRUCell(6, 6, **options),
    "lstm diagonal": lambda **options: DiagonalLSTMCell(6, 6, **options),
    "gru": lambda **options: GRUCell(6, 6, **options),
}


def infinity_norm(cell, state, drive):
    jacobian = cell.jacobian(state, drive).abs()
    if cell.structure == "diagonal":
        return jacobian.max()
    return jacobian.sum(-2 if cell.structure == "block2" else -1).max()


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e6])
def test_no_weights_make_a_state_grow(name, scale):
    torch.manual_seed(0)
    cell = CELLS[name]()
    worst = 0.0
    for _ in range(20):
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.normal_(0, scale)
                # Rows where a single weight has all of the bound are the extreme ones.
                parameter[torch.rand_like(parameter) < 0.5] = 0.0
            state = 2 * torch.rand(64, *cell.state_shape) - 1
            state[::2] = state[::2].sign()
            drive = (
                torch.randn(64, cell.gates, 6)
                * torch.tensor([0.1, 1, 3]).repeat(22)[:64, None, None]
            )
            worst = max(worst, float(infinity_norm(cell, state, drive)))
            assert bool((cell.step(state, drive).abs() <= 1).all())
    assert worst <= 1


@pytest.mark.parametrize("name", ["tanh diagonal", "gru diagonal", "lstm diagonal", "gru"])
def test_an_adversary_finds_no_growth(name):
    """Gradient ascent on the norm, over weights, states and drives."""
    torch.manual_seed(0)
    cell = CELLS[name](dtype=torch.float64)
    free = [torch.randn(256, *cell.state_shape, dtype=torch.float64)]
    free.append(torch.randn(256, cell.gates, 6, dtype=torch.float64))
    parameters = [x.requires_grad_() for x in free] + [cell.weight_hh]
    if cell.bias_hh is not None:
        parameters.append(cell.bias_hh)
    climb = torch.optim.Adam(parameters, lr=0.1)
    for _ in range(60):
        norm = infinity_norm(cell, torch.tanh(free[0]), free[1])
        assert float(norm.detach()) <= 1
        climb.zero_grad()
        (-norm).backward()
        climb.step()
    assert float(norm.detach()) > 0.8  # it is not the bound that is far from tight


def test_the_bound_of_the_lstms_output_row():
    """The last step of its proof: o(1 − t²) + 4 t o(1 − o) ≤ 1 for t ≤ tanh 1."""
    o = torch.linspace(0, 1, 2001, dtype=torch.float64)
    t = torch.linspace(0, float(torch.tanh(torch.tensor(1.0))), 2001, dtype=torch.float64)[:, None]
    value = o * (1 - t * t) + 4 * t * o * (1 - o)
    assert float(value.max()) <= 1


@pytest.mark.parametrize("name", CELLS)
def test_unbounded_cells_are_not(name):
    torch.manual_seed(0)
    cell = CELLS[name](bounded=False)
    with torch.no_grad():
        cell.weight_hh.normal_(0, 4)
        state = 2 * torch.rand(64, *cell.state_shape) - 1
        assert float(infinity_norm(cell, state, torch.randn(64, cell.gates, 6))) > 1


def test_free_and_effective_weights_are_one_to_one():
    torch.manual_seed(0)
    parts = [(torch.randn(5, 7).double(), 1.0), (torch.randn(5).double(), 0.25)]
    bounded = bound(parts, 1.0)
    total = bounded[0].abs().sum(-1) + 0.25 * bounded[1].abs()
    assert bool((total < 1).all())
    back = unbound([(w, k) for w, (_, k) in zip(bounded, parts, strict=True)], 1.0)
    for got, (expected, _) in zip(back, parts, strict=True):
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(got.sign(), expected.sign())


def test_no_gradient_dies():
    """The derivative of effective by free weights stays regular, even far out."""
    for size in (0.0, 1.0, 100.0):
        row = torch.full((1, 4), size, dtype=torch.float64)
        row[0, 1] *= -0.5

        def effective(v):
            return bound([(v, 1.0)], 1.0)[0][0]

        jacobian = torch.autograd.functional.jacobian(effective, row)[:, 0]
        total = float(row.abs().sum())
        singular = torch.linalg.svdvals(jacobian)
        assert float(singular.min()) > 0.1 / (1 + total) ** 2


def test_weights_outside_have_no_free_ones():
    with pytest.raises(ValueError, match=r"below 0.99999, got 1.5.*bounded=False"):
        unbound([(torch.tensor([1.5]), 1.0)], 1.0)


def test_half_precision_parameters_are_bounded_in_float32():
    cell = TanhCell(64, dtype=torch.bfloat16)
    with torch.no_grad():
        cell.weight_hh.normal_(0, 100)
    weight = cell.effective_weight().detach()
    assert weight.dtype == torch.float32
    assert float(weight.abs().sum(-1).max()) <= 1


@pytest.mark.parametrize("name", CELLS)
def test_new_cells_remember(name):
    """An impulse at the first step is still there some steps later, in the mean over channels."""
    torch.manual_seed(0)
    cell = {
        "tanh": lambda: TanhCell(64),
        "tanh diagonal": lambda: TanhCell(64, True),
        "gru diagonal": lambda: DiagonalGRUCell(64, 64),
        "lstm diagonal": lambda: DiagonalLSTMCell(64, 64),
        "gru": lambda: GRUCell(64, 64),
    }[name]()
    with torch.no_grad():
        drive = cell.project(torch.zeros(2, 5, 64))
        state = torch.zeros(2, *cell.state_shape)
        state[1] = 0.5
        for t in range(5):
            state = cell.step(state, drive[:, t])
        apart = (state[1] - state[0]).abs().mean()
    assert float(apart) > 0.5 * 0.9**5 * 0.02
    assert float(apart) < 0.5
