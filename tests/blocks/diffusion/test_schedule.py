"""Schedules: their derivatives, inverses, ends, and the formulas and tables of their sources."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ropewalk.blocks.diffusion import (
    Cosine,
    Karras,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Shifted,
    Sigmoid,
    Tabulated,
)

SCHEDULES = {
    "rectified_flow": RectifiedFlow(),
    "cosine": Cosine(),
    "linear_beta": LinearBeta(),
    "constant_beta": LinearBeta(5.0, 5.0),
    "sigmoid": Sigmoid(),
    "sigmoid_one_sided": Sigmoid(0.0, 3.0, 0.3),
    "karras": Karras(),
    "tabulated": Tabulated.linear_beta(1000),
    "tabulated_few": Tabulated.linear_beta(7, 0.1, 0.999),
    "shifted_flow": Shifted(RectifiedFlow()),
    "shifted_back": Shifted(Cosine(), 0.4),
    "shifted_karras": Shifted(Karras(), 2.0),
}
every = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
VARIANCE_PRESERVING = (Cosine, LinearBeta, Sigmoid, Tabulated)


def inner_times(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Times off the ends and off the knots of the tables, where derivatives jump."""
    return torch.linspace(0.0013, 0.9977, 97, dtype=dtype)


@every
def test_derivatives_are_those_of_autograd(schedule: Schedule) -> None:
    t = inner_times().requires_grad_()
    for value, derivative in (
        (schedule.alpha(t), schedule.alpha_derivative(t)),
        (schedule.sigma(t), schedule.sigma_derivative(t)),
        (schedule.severity(t), schedule.severity_derivative(t)),
    ):
        (expected,) = (
            torch.autograd.grad(value.sum(), t, retain_graph=True)
            if value.requires_grad
            else (torch.zeros_like(t),)
        )
        torch.testing.assert_close(derivative, expected, rtol=1e-10, atol=1e-11)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_time_at_inverts_the_log_snr(schedule: Schedule, dtype: torch.dtype) -> None:
    t = inner_times(dtype)
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() < 0).all()
    # Karras' first times are a difference of nearly equal roots.
    loss = 100 if "Karras" in repr(schedule) else 10
    error = (schedule.time_at(log_snr) - t).abs() / t
    assert error.max() <= loss * torch.finfo(dtype).eps
    expected = 2 * (schedule.alpha(t) / schedule.sigma(t)).log()
    torch.testing.assert_close(log_snr, expected, rtol=1e-5, atol=16 * torch.finfo(dtype).eps)


@every
def test_unreachable_log_snr_is_an_end(schedule: Schedule) -> None:
    ends = torch.tensor([math.inf, -math.inf, 200.0, -200.0], dtype=torch.float64)
    expected = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.time_at(ends), expected, rtol=0, atol=1e-15)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_severity_runs_from_zero_to_one_exactly(schedule: Schedule, dtype: torch.dtype) -> None:
    severity = schedule.severity(torch.linspace(0, 1, 33).to(dtype))
    assert severity[0] == 0
    assert severity[-1] == 1
    assert (severity.diff() > 0).all()
    assert schedule.severity(0.0) == 0
    assert schedule.severity(1) == 1


@every
def test_shape_and_dtype_are_those_of_the_times(schedule: Schedule) -> None:
    for shape in ((), (0,), (1,), (2, 3)):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            t = torch.full(shape, 0.3, dtype=dtype)
            expected = torch.float64 if dtype == torch.float64 else torch.float32
            for method in ("alpha", "sigma", "log_snr", "severity", "sigma_derivative"):
                value = getattr(schedule, method)(t)
                assert (value.shape, value.dtype) == (shape, expected)
    assert schedule.alpha(0.3).dtype == torch.float64


@pytest.mark.parametrize(
    "schedule", [RectifiedFlow(), Cosine(), LinearBeta(), Sigmoid(), Karras()], ids=repr
)
def test_float32_keeps_its_digits_near_the_ends(schedule: Schedule) -> None:
    t = torch.tensor([1e-7, 1e-4, 0.5, 1 - 1e-4, 1 - 2**-22])
    for method in ("alpha", "sigma"):
        value, exact = getattr(schedule, method)(t), getattr(schedule, method)(t.double())
        torch.testing.assert_close(value.double(), exact, rtol=3e-6, atol=0)


@every
def test_ends_are_data_and_noise(schedule: Schedule) -> None:
    assert schedule.alpha(0.0) == 1
    if "Karras" in repr(schedule):
        assert schedule.sigma(0.0) == pytest.approx(0.002, rel=1e-12)
        assert schedule.sigma(1.0) == pytest.approx(80.0, rel=1e-12)
    else:
        assert schedule.sigma(0.0) == 0
    if isinstance(schedule, RectifiedFlow | Cosine | Sigmoid):
        assert schedule.alpha(1.0) == 0
        assert schedule.sigma(1.0) == 1


@pytest.mark.parametrize(
    "name", [name for name, each in SCHEDULES.items() if isinstance(each, VARIANCE_PRESERVING)]
)
def test_variance_is_preserved(name: str) -> None:
    t = inner_times()
    total = SCHEDULES[name].alpha(t).square() + SCHEDULES[name].sigma(t).square()
    torch.testing.assert_close(total, torch.ones_like(t), rtol=0, atol=1e-15)


def test_linear_beta_integrates_beta() -> None:
    schedule = LinearBeta(0.3, 12.0)
    t = torch.linspace(0, 0.8, 100_001, dtype=torch.float64)
    integral = torch.trapezoid(0.3 + t * 11.7, t)
    torch.testing.assert_close(schedule.alpha(0.8), (-integral / 2).exp(), rtol=1e-12, atol=0)


def test_sigmoid_is_its_definition() -> None:
    t = inner_times()
    first, last = (torch.tensor(x, dtype=torch.float64) / 0.7 for x in (-3.0, 2.0))
    z = (-3 + 5 * t) / 0.7
    expected = (last.sigmoid() - z.sigmoid()) / (last.sigmoid() - first.sigmoid())
    schedule = Sigmoid(-3.0, 2.0, 0.7)
    torch.testing.assert_close(schedule.alpha(t).square(), expected, rtol=1e-12, atol=1e-15)


def test_karras_is_equation_five() -> None:
    steps, rho = 18, 7
    low, high = 0.002 ** (1 / rho), 80 ** (1 / rho)
    expected = [(high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)]
    sigmas = Karras().sigma(Karras().times(steps - 1))
    np.testing.assert_allclose(sigmas.numpy(), expected, rtol=1e-12)


def test_table_is_exact_at_its_knots_and_is_diffusers() -> None:
    schedule = Tabulated.linear_beta(1000)
    products = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    knots = torch.arange(1, 1001, dtype=torch.float64) / 1000
    np.testing.assert_allclose(schedule.alpha(knots).numpy() ** 2, products, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma(knots).numpy() ** 2, 1 - products, rtol=1e-11)
    theirs = DDPMScheduler(beta_start=1e-4, beta_end=2e-2, beta_schedule="linear").alphas_cumprod
    torch.testing.assert_close(schedule.alpha(knots).square().float(), theirs, rtol=1e-4, atol=0)
    read = Tabulated(tuple(theirs.tolist()))
    torch.testing.assert_close(read.alpha(knots).square().float(), theirs, rtol=1e-6, atol=0)
    times = schedule.times(30)
    torch.testing.assert_close(times * 1000, (times * 1000).round(), rtol=0, atol=1e-10)
    assert times[0] == 1
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    assert len(schedule.times(2000)) == 2001


def test_a_table_that_ends_without_signal_still_ends() -> None:
    schedule = Tabulated((0.5, 0.1, 0.0))
    assert schedule.alpha(1.0) == 0
    assert schedule.sigma(1.0) == 1
    assert schedule.log_snr(1.0) == -math.inf
    assert schedule.time_at(-math.inf) == 1


def test_shift_identities() -> None:
    t = inner_times()
    flow = RectifiedFlow()
    shifted = Shifted(flow, 3.0)
    torch.testing.assert_close(
        shifted.sigma(t) / shifted.alpha(t), 3 * t / (1 - t), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        shifted.log_snr(t), flow.log_snr(t) - 2 * math.log(3.0), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        Shifted(shifted, 0.5).alpha(t), Shifted(flow, 1.5).alpha(t), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(Shifted(Cosine(), 1.0).alpha(t), Cosine().alpha(t), rtol=0, atol=0)
    moved = Shifted(Cosine(), 3.0)
    torch.testing.assert_close(moved.alpha(t), Cosine().alpha(moved.model_time(t)))
    torch.testing.assert_close(Shifted(moved, 2.0).model_time(t), 6 * t / (1 + 5 * t))
    assert Cosine().model_time(0.3) == 0.3


@every
def test_objects_are_values(schedule: Schedule) -> None:
    for copied in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert copied == schedule
        assert hash(copied) == hash(schedule)
        assert copied.alpha(0.3) == schedule.alpha(0.3)
    assert len(repr(schedule)) < 120


@every
def test_schedules_compile_as_a_whole(schedule: Schedule) -> None:
    def both(t: torch.Tensor) -> torch.Tensor:
        return schedule.alpha(t) + schedule.sigma_derivative(t) + schedule.severity(t)

    t = inner_times()
    torch._dynamo.reset()  # the function is traced for every schedule
    compiled = torch.compile(both, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(t), both(t))


@every
def test_times_outside_are_refused(schedule: Schedule) -> None:
    for t in (-0.1, 1.5, math.nan, torch.tensor([0.2, 1.01]), torch.tensor(math.nan)):
        with pytest.raises(ValueError, match=r"expected (a time|times) in \[0, 1\]"):
            schedule.alpha(t)
    for t in (torch.tensor([3]), "0.5", None, True):
        with pytest.raises(TypeError, match="floating-point tensor"):
            schedule.sigma(t)
    with pytest.raises(TypeError, match="log_snr"):
        schedule.time_at(torch.tensor(3))
    with pytest.raises(TypeError, match="log_snr"):
        schedule.time_at("3")
    for steps, error in ((0, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="steps"):
            schedule.times(steps)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: LinearBeta(3.0, 2.0), ValueError, "beta_min"),
        (lambda: LinearBeta(-1.0), ValueError, "beta_min"),
        (lambda: LinearBeta(0.1, "20"), TypeError, "beta_max"),
        (lambda: Sigmoid(3.0, -3.0), ValueError, "start < end"),
        (lambda: Sigmoid(temperature=0.01), ValueError, "temperatures"),
        (lambda: Karras(1.0, 0.5), ValueError, "sigma_max"),
        (lambda: Karras(0.0), ValueError, "sigma_min"),
        (lambda: Shifted("cosine"), TypeError, "Schedule"),
        (lambda: Shifted(Cosine(), 0.0), ValueError, "shift"),
        (lambda: Tabulated([0.5]), TypeError, "tolist"),
        (lambda: Tabulated(()), ValueError, "at least one step"),
        (lambda: Tabulated((0.5, 0.6)), ValueError, "fall strictly"),
        (lambda: Tabulated((0.5, -0.1)), ValueError, "fall strictly"),
        (lambda: Tabulated.linear_beta(0), ValueError, "steps"),
        (lambda: Tabulated.linear_beta(10, 1e-4, 1.0), ValueError, "below 1"),
    ],
    ids=range(15),
)
def test_bad_parameters_are_refused(make, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
