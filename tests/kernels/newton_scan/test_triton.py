"""Triton's kernels equal the oracle: interpreted and on a device.

Interpreted, a program has two channels, and windows are two groups of two steps or as asked for.
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from ropewalk.kernels.newton_scan import newton_scan, triton
from ropewalk.kernels.newton_scan.problem import Needs, Options, Problem

FP32 = torch.float32
ALL = Needs(True, True, True)
NEWTON, IN_TURN = Options("newton"), Options("sequential")
both = pytest.mark.parametrize("options", [NEWTON, IN_TURN], ids=["windows", "in turn"])


def problem_of(recurrence, cu=None, dtype: torch.dtype = FP32) -> Problem:
    r = recurrence
    initial = None if r.initial is None else r.initial.detach()
    return Problem(r.inputs.detach().to(dtype), r.weights.detach(), initial, r.cell, cu)


def close(ours: Tensor, truth: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(ours.cpu().double(), truth.detach(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def check(make_recurrence, recurrence_oracle, kernel_device):
    """`check(cell, options, …)`: states and all gradients are the oracle's."""

    def compare(cell, options, size=(1, 6, 3), *, bounds=None, initial=True, std=0.8):
        sequences = None if bounds is None else len(bounds) - 1
        r = make_recurrence(cell, *size, sequences=sequences, initial=initial, std=std)
        expected = recurrence_oracle(r, bounds=bounds)
        v = torch.randn_like(expected)
        truths = [None] * len(r.tensors)
        if expected.requires_grad:
            truths = torch.autograd.grad(expected, r.tensors, v)
        cu = None if bounds is None else torch.tensor(bounds, dtype=torch.int32).to(kernel_device)
        problem = problem_of(r.to(dtype=FP32, device=kernel_device), cu)
        found = triton.forward(problem, options)
        close(found.states, expected)
        needs = ALL._replace(initial=initial)
        gradients = triton.backward(problem, found.states, v.to(found.states), needs, options)
        ours = [t for t in gradients if t is not None]
        for x, truth, given in zip(ours, truths, r.tensors, strict=True):
            close(x, torch.zeros_like(given) if truth is None else truth, 1e-4)
        return found

    return compare


@both
def test_equal_to_the_oracle(cell, options, check, uninitialised):
    found = check(cell, options)
    if options is IN_TURN:
        assert not found.iterations.any()
        assert not found.residual.any()
    else:
        assert ((found.iterations >= 1) & (found.iterations <= 4)).all()
        assert (found.residual <= 1e-6).all() | (found.iterations == 4).any()


@both
def test_packed_sequences(options, check, uninitialised):
    check("gru", options, (1, 7, 2), bounds=[0, 0, 5, 5, 6, 7, 7])


@both
@pytest.mark.parametrize("time", [0, 1])
def test_no_time_and_one_step(time, options, check, uninitialised):
    check("gru", options, (2, time, 3))


@both
def test_without_an_initial_state(options, check, uninitialised):
    check("gru", options, (1, 3, 1), initial=False)


@pytest.mark.parametrize("window", [1, 7])
def test_windows_of_any_length(window, check, uninitialised):
    """And as many iterations as a window has steps are always enough."""
    found = check("tanh", Options("newton", window), (1, 8, 2), std=2.0)
    assert (found.iterations <= window).all()


def test_windows_are_cut_to_what_a_program_holds(check, kernel_device):
    """Interpreted, 16 steps."""
    found = check("tanh", Options("newton", 40), (1, 18, 1))
    assert (found.iterations <= (16 if kernel_device.type == "cpu" else 40)).all()


@pytest.mark.parametrize("tolerance", [3, 1e9])
def test_any_tolerance_corrects_once(tolerance, make_recurrence, kernel_device):
    """A whole number too, and one beside which 1 is nothing."""
    r = make_recurrence("tanh", 1, 4, 1, std=0.3).to(dtype=FP32, device=kernel_device)
    found = triton.forward(problem_of(r), Options("newton", 4, tolerance))
    assert (found.iterations == 1).all()
    close(found.states, triton.forward(problem_of(r), IN_TURN).states.double().cpu(), 0.1)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_steep_cells_stay_finite_and_end_exact(make_recurrence, recurrence_oracle, kernel_device):
    """Jacobians along a guess that is far off overflow; the states do not."""
    r = make_recurrence("tanh", 1, 16, 2, std=1.0)
    r = r.to(dtype=FP32, device=kernel_device)
    with torch.no_grad():
        r.weights.fill_(1e12)
        r.inputs.mul_(1e12)
    found = triton.forward(problem_of(r), Options("newton", 16))
    assert found.states.isfinite().all()
    close(found.states, recurrence_oracle(r.to(dtype=torch.float64, device="cpu")))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize(("window", "iterations"), [(7, 4), (3, None)], ids=str)
def test_guesses_that_are_far_off_end_exact(window, iterations, make_recurrence, kernel_device):
    """Beside a guess of 1e20 a state's digits would be lost, also behind a window of odd length."""
    r = make_recurrence("lstm", 1, 9, 2, std=1e10, seed=1).to(dtype=FP32, device=kernel_device)
    exact = triton.forward(problem_of(r), IN_TURN).states
    found = triton.forward(problem_of(r), Options("newton", window, None, iterations)).states
    first = slice(0, iterations or 9)
    close(found[:, first], exact[:, first].double().cpu(), 1e-5)


def test_few_iterations_leave_a_residual_that_is_told(make_recurrence, kernel_device):
    """After k iterations the first k states are exact, and the rest is what the residual says."""
    r = make_recurrence("tanh", 1, 4, 2, std=3.0).to(dtype=FP32, device=kernel_device)
    exact = triton.forward(problem_of(r), IN_TURN).states
    found = triton.forward(problem_of(r), Options("newton", 4, None, 2))
    assert (found.iterations == 2).all()
    close(found.states[:, :2], exact[:, :2].double().cpu(), 1e-6)
    before = torch.cat((r.initial.detach()[:, None], found.states[:, :-1]), dim=1)
    left = torch.tanh(r.inputs.detach()[:, :, 0] + r.weights.detach() * before) - found.states
    close(found.residual, left.abs().amax(1).double().cpu(), 1e-5)
    assert (found.residual > 1e-4).any()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@both
def test_what_is_no_number_shows(options, make_recurrence, kernel_device):
    """From its step on, in its chain alone."""
    r = make_recurrence("tanh", 1, 7, 2).to(dtype=FP32, device=kernel_device)
    with torch.no_grad():
        r.inputs[0, 2, 0, 1] = torch.nan
    states = triton.forward(problem_of(r), options).states.cpu()
    assert states[0, 2:, 1].isnan().all()
    assert states[0, :2].isfinite().all()
    assert states[..., 0].isfinite().all()


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(
    dtype, options, make_recurrence, recurrence_oracle, kernel_device
):
    r = make_recurrence("tanh", 1, 5, 2).to(dtype=FP32, device=kernel_device)
    with torch.no_grad():
        r.inputs.copy_(r.inputs.to(dtype))
    found = triton.forward(problem_of(r, dtype=dtype), options).states
    assert found.dtype == dtype
    expected = recurrence_oracle(r.to(dtype=torch.float64, device="cpu"))
    close(found, expected, torch.finfo(dtype).eps)


@both
def test_any_strides(options, make_recurrence, recurrence_oracle, kernel_device):
    r = make_recurrence("gru", 1, 5, 3)
    ours = r.to(dtype=FP32, device=kernel_device)
    problem = problem_of(ours)
    turned = problem.inputs.transpose(1, 3).contiguous().transpose(1, 3)
    given = Problem(turned, problem.weights.T.contiguous().T, problem.initial, "gru")
    close(triton.forward(given, options).states, recurrence_oracle(r))


def test_the_op_takes_the_kernels(make_recurrence, recurrence_oracle, kernel_device):
    r = make_recurrence("gru", 1, 5, 3)
    ours = r.to(dtype=FP32, device=kernel_device)
    found = newton_scan(ours.inputs, ours.weights, ours.initial, cell="gru", backend="triton")
    expected = recurrence_oracle(r)
    close(found.states.detach(), expected)
    truths = torch.autograd.grad(expected.sum(), r.tensors)
    for x, truth in zip(torch.autograd.grad(found.states.sum(), ours.tensors), truths, strict=True):
        close(x, truth, 1e-4)
