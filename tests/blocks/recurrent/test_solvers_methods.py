"""What each method's Ã is, against its definition; ELK against the normal equations."""

import pytest
import torch

from ropewalk.blocks.recurrent.cells import FunctionCell, TanhCell
from ropewalk.blocks.recurrent.solvers import (
    Clip,
    Elk,
    FirstOrder,
    Fixed,
    Jacobi,
    Newton,
    Picard,
    Quasi,
    Scale,
    iterate,
    solve,
)
from ropewalk.blocks.recurrent.solvers.layout import Layout
from ropewalk.blocks.recurrent.solvers.trust_region import trust_region_step

F64 = torch.float64
TIME = 6


def linearised(cell, inputs, initial, guess, approximate):
    """One iteration by its definition, step by step, for a batch of one."""
    drive = cell.project(inputs)
    h, before, states = initial, initial, []
    for t in range(inputs.shape[1]):
        a = approximate(before[0], drive[0, t])
        h = cell.step(before, drive[:, t]) + (h - before) @ a.mT
        before = guess[:, t]
        states.append(h)
    return torch.stack(states, 1)


def test_every_approximation_is_its_definition():
    torch.manual_seed(0)
    cell = TanhCell(4, bounded=False, dtype=F64)
    inputs, initial = torch.randn(1, TIME, 4, dtype=F64), torch.randn(1, 4, dtype=F64)
    guess = torch.randn(1, TIME, 4, dtype=F64)
    matrix = cell.weight_hh.detach()

    def jacobian(h, u):
        return (1 - torch.tanh(matrix @ h + u[0]) ** 2)[:, None] * matrix

    definitions = {
        Jacobi(): lambda h, u: torch.zeros_like(matrix),
        Picard(): lambda h, u: torch.eye(4, dtype=F64),
        Fixed(): lambda h, u: matrix,
        Fixed(diagonalise=True): lambda h, u: matrix,
        FirstOrder(): lambda h, u: (1 - torch.tanh(u[0]) ** 2)[:, None] * matrix,
        Newton(): jacobian,
        Quasi(): lambda h, u: torch.diag(torch.diag(jacobian(h, u))),
        Clip(0.1): lambda h, u: jacobian(h, u).clamp(-0.1, 0.1),
        Scale(0.25): lambda h, u: 0.75 * jacobian(h, u),
    }
    for method, approximate in definitions.items():
        expected = linearised(cell, inputs, initial, guess, approximate)
        got = iterate(cell, inputs, initial, method=method, iterations=1, guess=guess)
        torch.testing.assert_close(got, expected, msg=str(method))


def test_scale_lies_between_newton_and_jacobi(make_cell, draw):
    cell = make_cell("lstm diagonal", F64)
    inputs, initial, _ = draw(cell, F64)
    options = {"iterations": 2, "guess": torch.randn(2, 24, *cell.state_shape, dtype=F64)}
    for by, other in ((0.0, "newton"), (1.0, "jacobi")):
        torch.testing.assert_close(
            iterate(cell, inputs, initial, method=Scale(by), **options),
            iterate(cell, inputs, initial, method=other, **options),
        )
    torch.testing.assert_close(
        iterate(cell, inputs, initial, method=Clip(1e3), **options),
        iterate(cell, inputs, initial, method="newton", **options),
    )


@pytest.mark.parametrize("name", ["tanh", "lstm diagonal", "gru", "lstm"])
@pytest.mark.parametrize("cu", [None, [0, 9, 9, 10, 24]], ids=["batch", "ragged"])
def test_diagonalised_is_fixed(make_cell, draw, name, cu):
    cell = make_cell(name)
    inputs, initial, cu = draw(cell, cu=cu)
    for k in (1, 4):
        options = {"iterations": k, "cu_seqlens": cu}
        torch.testing.assert_close(
            iterate(cell, inputs, initial, method=Fixed(diagonalise=True), **options),
            iterate(cell, inputs, initial, method=Fixed(), **options),
            rtol=0,
            atol=1e-5,
        )


def test_a_defective_matrix_has_no_eigenbasis():
    cell = TanhCell(2, bounded=False)
    with torch.no_grad():
        cell.weight_hh.copy_(torch.tensor([[0.5, 1.0], [0.0, 0.5]]))
    inputs = torch.randn(1, 5, 2)
    with pytest.raises(ValueError, match=r"condition number .* use Fixed\(\)"):
        solve(cell, inputs, method=Fixed(diagonalise=True))
    solve(cell, inputs, method=Fixed())


@pytest.mark.parametrize("damping", [1e-3, 1.0, 10.0])
@pytest.mark.parametrize("cu", [None, [0, 3, 3, 7]], ids=["batch", "ragged"])
def test_elk_solves_the_normal_equations(damping, cu):
    """(AᵀA + λ) d = Aᵀe, with A the linearised equations, as a dense matrix."""
    torch.manual_seed(0)
    time = 7
    jacobian, guess, made = torch.randn(3, 1, time, 2, dtype=F64)
    jacobian = 3 * jacobian
    layout = Layout.of(1, time, None if cu is None else torch.tensor(cu))
    got = trust_region_step(layout, jacobian, guess, made, torch.tensor(damping, dtype=F64))
    for channel in range(2):
        a = torch.eye(time, dtype=F64)
        for t in range(1, time):
            if cu is None or t not in cu:
                a[t, t - 1] = -jacobian[0, t, channel]
        error = (made - guess)[0, :, channel]
        step = torch.linalg.solve(a.mT @ a + damping * torch.eye(time, dtype=F64), a.mT @ error)
        torch.testing.assert_close(got[0, :, channel] - guess[0, :, channel], step)


@pytest.mark.parametrize("name", ["gru diagonal", "lstm diagonal", "gru"])
def test_elk_without_damping_is_quasi(make_cell, draw, name):
    cell = make_cell(name, F64)
    inputs, initial, _ = draw(cell, F64)
    for adaptive in (True, False):
        torch.testing.assert_close(
            iterate(cell, inputs, initial, method=Elk(1e-12, adaptive), iterations=3),
            iterate(cell, inputs, initial, method="quasi", iterations=3),
        )


def test_much_damping_hardly_moves(make_cell, draw):
    cell = make_cell("gru diagonal", F64)
    inputs, initial, _ = draw(cell, F64)
    guess = torch.zeros(2, 24, *cell.state_shape, dtype=F64)
    moved = iterate(
        cell, inputs, initial, method=Elk(1e6, adaptive=False), iterations=1, guess=guess
    )
    assert 0 < float(moved.detach().abs().max()) < 1e-5


def test_elk_stays_finite_where_newton_overflows():
    """Möbius maps of thousands of steps, with |J| up to 30."""
    torch.manual_seed(0)
    weight = 30 * torch.randn(8)
    cell = FunctionCell(lambda h, x: torch.tanh(weight * h + x), 8, structure="diagonal")
    inputs = torch.randn(1, 3000, 8)
    for _ in range(2):
        states = iterate(cell, inputs, method=Elk(), iterations=3)
        assert bool(states.isfinite().all())
    assert not bool(iterate(cell, inputs, method="newton", iterations=3).isfinite().all())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Clip(0.0), ValueError, "Clip.bound"),
        (lambda: Clip("1"), TypeError, "Clip.bound"),
        (lambda: Scale(1.5), ValueError, r"\[0, 1\], got 1.5"),
        (lambda: Scale(float("nan")), ValueError, "nan"),
        (lambda: Scale(None), TypeError, "Scale.by"),
        (lambda: Elk(0.0), ValueError, "Elk.damping"),
        (lambda: Elk(1.0, 1), TypeError, "Elk.adaptive"),
        (lambda: Fixed(1), TypeError, "Fixed.diagonalise"),
    ],
)
def test_what_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
