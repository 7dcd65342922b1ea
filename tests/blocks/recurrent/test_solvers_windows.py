"""Overflow, windows, retries, and what is said about them."""

import warnings

import pytest
import torch

from ropewalk.blocks.recurrent.cells import DiagonalGRUCell, FunctionCell
from ropewalk.blocks.recurrent.solvers import (
    ConvergenceError,
    Elk,
    RecurrenceWarning,
    forget_warnings,
    iterate,
    solve,
)

TIME = 4096


def tanh_of(weight):
    """The diagonal tanh cell by its formulas, so that nothing is computed by the fused scan."""

    def step(h, x):
        return torch.tanh(weight.to(h) * h + x)

    def jacobian(h, x):
        return weight.to(h) * (1 - step(h, x) ** 2)

    return FunctionCell(step, len(weight), structure="diagonal", jacobian=jacobian)


def stress(name, dtype=torch.float32):
    """The cells on which plain Newton overflows although the sequence is stable."""
    torch.manual_seed(0)
    if name == "tanh":
        return tanh_of(6 * torch.rand(8) - 3), torch.randn(2, TIME, 8, dtype=dtype)
    cell = DiagonalGRUCell(4, 16, bounded=False, dtype=dtype)
    with torch.no_grad():
        cell.weight_hh.normal_(0, 2)
    return cell, torch.randn(2, TIME, 4, dtype=dtype)


@pytest.mark.parametrize("name", ["tanh", "gru"])
@pytest.mark.usefixtures("warned_freely")
@torch.no_grad()
def test_stress_cells_overflow_plainly_and_converge_in_windows(name):
    cell, inputs = stress(name)
    assert not bool(iterate(cell, inputs, method="newton", iterations=8).isfinite().all())
    expected, _ = solve(cell, inputs, method="sequential")
    for options in (
        {"method": "auto"},
        {"method": "newton"},
        {"method": "newton", "window": 64},
        {"method": "quasi", "window": 64},
    ):
        states, info = solve(cell, inputs, **options)
        assert info.converged, options
        assert info.residual <= 2e-6
        assert info.sequential_from is None or options["method"] == "auto"
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-5, msg=str(options))
        if "window" in options:
            assert info.iterations <= 64
            assert info.windows == TIME / 64
            assert info.failed == ()


@pytest.mark.usefixtures("warned_freely")
@torch.no_grad()
def test_elk_converges_where_plain_newton_overflows():
    cell, inputs = stress("gru")
    expected, _ = solve(cell, inputs, method="sequential")
    for method in ("elk", Elk(0.1)):
        states, info = solve(cell, inputs, method=method)
        assert info.converged
        assert info.sequential_from is None
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("warned_freely")
def test_su_s_fixed_form_overflows_near_a_norm_of_one_and_is_right_all_the_same():
    """It contracts for ‖A‖ < ½; at 1 whole sequences are out of its reach."""
    torch.manual_seed(0)
    inputs = torch.randn(1, 512, 4)
    for size, whole in ((0.4, True), (1.05, False)):
        cell = tanh_of(torch.full((4,), size))
        states, info = solve(cell, inputs, method="fixed")
        assert (info.windows == 1) == whole
        assert info.converged
        expected, _ = solve(cell, inputs, method="sequential")
        torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)
    far = iterate(cell, inputs, method="fixed", iterations=20) - expected
    assert not float(far.abs().max()) < 1


@pytest.mark.parametrize("cu", [None, [0, 100, 100, 137, 300]], ids=["batch", "ragged"])
@pytest.mark.parametrize("window", [1, 7, 64, 300, 1000])
def test_windows_carry_the_last_state(make_cell, draw, unrolled, window, cu):
    cell = make_cell("gru")
    inputs, initial, cu = draw(cell, time=300, cu=cu)
    states, info = solve(cell, inputs, initial, method="newton", window=window, cu_seqlens=cu)
    torch.testing.assert_close(states, unrolled(cell, inputs, initial, cu), rtol=0, atol=1e-5)
    assert info.windows == -(-300 // window)
    assert info.failed == ()
    assert info.iterations <= window


@torch.no_grad()
def test_unconverged_windows_are_halved_and_it_is_said_once():
    cell, inputs = stress("tanh")
    inputs = inputs[:, :512]
    forget_warnings()
    with pytest.warns(RecurrenceWarning, match="newton did not converge in steps 0 to 512") as told:
        states, info = solve(cell, inputs, method="newton")
    assert len(told) == 1
    assert info.converged
    assert info.sequential_from is None
    expected, _ = solve(cell, inputs, method="sequential")
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)
    first, second = info.failed[:2]
    assert (first.start, first.stop) == (0, 512)
    assert first.residual > info.tolerance
    assert first.kept >= first.iterations  # as many are exact
    assert (second.start, second.stop) == (first.kept, first.kept + 256)
    assert info.total_iterations > sum(attempt.iterations for attempt in info.failed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(cell, inputs, method="newton")


@torch.no_grad()
def test_a_window_that_was_asked_for_is_halved_too():
    cell, inputs = stress("tanh")
    inputs = inputs[:, :256]
    forget_warnings()
    with pytest.warns(RecurrenceWarning, match="newton did not converge in steps 0 to 64"):
        _, info = solve(cell, inputs, method="newton", window=64, max_iterations=16)
    assert info.converged
    assert info.iterations <= 16
    assert {attempt.stop - attempt.start for attempt in info.failed} <= {64, 32}


@pytest.mark.parametrize("cu", [None, [0, 20, 20, 37, 60]], ids=["batch", "ragged"])
def test_at_last_steps_are_taken_in_turn(make_cell, draw, unrolled, cu):
    cell = make_cell("lstm")
    inputs, initial, cu = draw(cell, time=60, cu=cu)
    forget_warnings()
    with pytest.warns(RecurrenceWarning, match="jacobi did not converge; from step"):
        states, info = solve(
            cell, inputs, initial, method="jacobi", max_iterations=2, cu_seqlens=cu
        )
    assert info.converged
    assert info.sequential_from is not None
    torch.testing.assert_close(states, unrolled(cell, inputs, initial, cu), rtol=0, atol=1e-5)


def test_strict_raises_instead(make_cell, draw):
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell, time=200)
    with pytest.raises(
        ConvergenceError, match=r"newton: expected convergence.*steps 0 to 200"
    ) as e:
        solve(cell, inputs, initial, method="newton", max_iterations=3, strict=True)
    info = e.value.info
    assert not info.converged
    assert info.residual > info.tolerance
    assert len(info.failed) == 1
    assert info.sequential_from is None
    assert solve(cell, inputs, initial, method="newton", strict=True)[1].converged


def test_strict_says_how_far_the_states_are_off(make_cell, draw):
    """The info of the error is that of the iterate itself."""
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell, time=50)
    with pytest.raises(ConvergenceError) as e:
        solve(cell, inputs, initial, method="jacobi", max_iterations=2, strict=True)
    reached = iterate(cell, inputs, initial, method="jacobi", iterations=2).detach()
    before = torch.cat([initial[:, None], reached[:, :-1]], 1)
    made = cell.step(before, cell.project(inputs)).detach()
    assert abs(e.value.info.residual - float((reached - made).abs().max())) < 1e-6


def test_the_fused_scan_is_retried_in_turn_too():
    cell, inputs = stress("gru")
    inputs = inputs[:, :256]
    options = {"window": 64, "max_iterations": 1}
    expected, _ = solve(cell, inputs, method="sequential")
    forget_warnings()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecurrenceWarning)
        states, info = solve(cell, inputs, **options)  # a CPU may take steps in turn at once
    assert info.converged
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_recurrence_without_finite_states_is_never_called_converged():
    cell = FunctionCell(lambda h, x: h * h + 2 + x, 2, structure="diagonal")
    inputs = torch.zeros(1, 40, 2)
    for method in ("sequential", "newton"):
        forget_warnings()
        with pytest.warns(RecurrenceWarning, match="do not satisfy the recurrence"):
            _, info = solve(cell, inputs, method=method)
        assert not info.converged
        assert info.residual == float("inf")
        with pytest.raises(ConvergenceError):
            solve(cell, inputs, method=method, strict=True)
    forget_warnings()


def test_a_looser_tolerance_takes_fewer_iterations(make_cell, draw):
    cell = make_cell("gru")
    inputs, initial, _ = draw(cell, time=100)
    _, tight = solve(cell, inputs, initial, method="quasi")
    _, loose = solve(cell, inputs, initial, method="quasi", tolerance=0.1)
    assert loose.iterations < tight.iterations
    assert loose.tolerance == 0.1
    assert loose.converged


@pytest.mark.parametrize("window", [None, 200])
@pytest.mark.parametrize("factor", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.usefixtures("warned_freely")
def test_slow_convergence_is_not_taken_for_its_end(factor, window):
    """Where the residual falls by ρ in each iteration the error is 1/(1 − ρ) of it."""
    torch.manual_seed(0)
    inputs = 0.1 * torch.rand(2, 200, 4)
    cell = FunctionCell(lambda h, x: factor * h + x, 4, structure="diagonal")
    exact, _ = solve(cell, inputs.double(), method="sequential")
    states, info = solve(cell, inputs, method="jacobi", window=window)
    assert info.converged
    torch.testing.assert_close(states.double(), exact, rtol=0, atol=5e-6)
