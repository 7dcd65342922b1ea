"""Parametrisations: exact conversion between all pairs, and their digits near the singular ends."""

import itertools

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.diffusion import (
    PARAMETRISATIONS,
    Cosine,
    Karras,
    RectifiedFlow,
    Schedule,
    convert,
    gain,
)
from ropewalk.blocks.diffusion.parametrisation import EDM, Parametrisation, V, parametrisation

PAIRS = list(itertools.product(PARAMETRISATIONS, repeat=2))
SCHEDULES = {"cosine": Cosine(), "flow": RectifiedFlow(), "karras": Karras(0.05, 10.0)}
SMOOTH = ("v", "flow", "edm")
"""Those that determine data and noise at every time."""


def outputs(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """What each parametrisation means, written out."""
    x_t, data = alpha * x0 + sigma * noise, 0.5
    variance = sigma**2 + data**2 * alpha**2
    # Karras et al., equation 7 and table 1, for x_t/α, whose noise level is σ/α.
    level = sigma / alpha
    skip, out = data**2 / (level**2 + data**2), level * data / (level**2 + data**2).sqrt()
    assert variance.min() > 0
    return {
        "epsilon": noise,
        "x0": x0,
        "v": alpha * noise - sigma * x0,
        "score": -noise / sigma,
        "flow": noise - x0,
        "edm": (x0 - skip * x_t / alpha) / out,
    }


def problem(schedule: Schedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    x0, noise = torch.randn(2, 19, 5, dtype=torch.float64)
    return x0, noise, schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_conversions_are_exact_and_round_trips_return(
    schedule: Schedule, source: str, target: str
) -> None:
    x0, noise, alpha, sigma = problem(schedule)
    x_t, truth = alpha * x0 + sigma * noise, outputs(x0, noise, alpha, sigma)
    converted = convert(truth[source], x_t, alpha, sigma, source, target)
    scale = 1 + truth[target].abs().max()
    assert (converted - truth[target]).abs().max() <= 1e-12 * scale
    back = convert(converted, x_t, alpha, sigma, target, source)
    assert (back - truth[source]).abs().max() <= 1e-12 * (1 + truth[source].abs().max())


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_methods_agree_with_the_definitions(name: str) -> None:
    x0, noise, alpha, sigma = problem(Cosine())
    x_t, form = alpha * x0 + sigma * noise, PARAMETRISATIONS[name]
    output = outputs(x0, noise, alpha, sigma)[name]
    for value, expected in (
        (form.target(x0, noise, alpha, sigma), output),
        (form.from_x0(x0, x_t, alpha, sigma), output),
        (form.to_x0(output, x_t, alpha, sigma), x0),
        (form.to_epsilon(output, x_t, alpha, sigma), noise),
    ):
        assert (value - expected).abs().max() <= 1e-12 * (1 + expected.abs().max())


@pytest.mark.parametrize("tiny", [1e-4, 1e-9, 0.0])
@pytest.mark.parametrize(
    ("source", "target"), list(itertools.product(SMOOTH, (*SMOOTH, "x0", "epsilon")))
)
def test_nothing_is_lost_near_either_end(source: str, target: str, tiny: float) -> None:
    x0, noise = torch.randn(2, 50, dtype=torch.float64)
    small, large = torch.tensor(tiny).double(), torch.tensor(1 - tiny).double()
    for alpha, sigma in ((small, large), (large, small)):
        given = PARAMETRISATIONS[source].target(x0, noise, alpha, sigma)
        wanted = PARAMETRISATIONS[target].target(x0, noise, alpha, sigma)
        converted = convert(given, alpha * x0 + sigma * noise, alpha, sigma, source, target)
        assert (converted - wanted).abs().max() <= 2e-15 * (1 + wanted.abs().max())


def test_the_score_never_divides_by_alpha() -> None:
    noise, zero, one = torch.randn(9), torch.tensor(0.0), torch.tensor(1.0)
    score = convert(noise, noise, zero, one, "epsilon", "score")
    torch.testing.assert_close(score, -noise, rtol=0, atol=0)
    torch.testing.assert_close(convert(score, noise, zero, one, "score", "epsilon"), noise)


@pytest.mark.parametrize("target", ["x0", "v", "flow", "edm"])
@pytest.mark.parametrize("source", ["epsilon", "score"])
def test_where_an_output_says_nothing_zero_comes_back(source: str, target: str) -> None:
    output = torch.randn(9, requires_grad=True)
    x_t, zero, one = torch.randn(9), torch.tensor(0.0), torch.tensor(1.0)
    converted = convert(output, x_t, zero, one, source, target)
    assert (converted == 0).all()
    converted.sum().backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert (convert(x_t, x_t, one, zero, "x0", "epsilon") == 0).all()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_errors_grow_by_the_gain(source: str, target: str) -> None:
    x0, noise, alpha, sigma = problem(RectifiedFlow())
    x_t, output = alpha * x0 + sigma * noise, outputs(x0, noise, alpha, sigma)[source]
    moved = convert(output + 1e-3, x_t, alpha, sigma, source, target)
    grown = moved - convert(output, x_t, alpha, sigma, source, target)
    factor = gain(source, target, alpha, sigma)
    torch.testing.assert_close(grown, (1e-3 * factor).expand_as(grown), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 3.0])
def test_edm_has_unit_variance_everywhere(sigma_data: float) -> None:
    form = EDM(sigma_data)
    for alpha, sigma in ((1.0, 80.0), (1.0, 0.002), (0.3, 0.7), (0.0, 1.0), (1.0, 0.0)):
        alpha, sigma = torch.tensor(alpha).double(), torch.tensor(sigma).double()
        a, b = form.form(alpha, sigma)
        assert (a * sigma_data) ** 2 + b**2 == pytest.approx(1.0, rel=1e-12)
        scale = form.input(torch.ones(1).double(), alpha, sigma)
        assert scale**2 * (alpha**2 * sigma_data**2 + sigma**2) == pytest.approx(1.0, rel=1e-12)


def test_edm_of_unit_data_is_minus_v() -> None:
    x0, noise, alpha, sigma = problem(Cosine())
    ours = EDM(1.0).target(x0, noise, alpha, sigma)
    torch.testing.assert_close(ours, -V().target(x0, noise, alpha, sigma), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_half_precision_is_rounded_once(source: str, target: str, dtype: torch.dtype) -> None:
    output, x_t = torch.randn(2, 64).to(dtype)
    alpha, sigma = torch.tensor(0.3), torch.tensor(0.7)
    half = convert(output, x_t, alpha, sigma, source, target)
    full = convert(output.float(), x_t.float(), alpha, sigma, source, target)
    assert half.dtype == dtype
    assert torch.equal(half, full.to(dtype))


def test_names_and_objects_are_found_and_others_refused() -> None:
    assert parametrisation("v") is PARAMETRISATIONS["v"]
    assert isinstance(parametrisation(EDM(2.0)), Parametrisation)
    with pytest.raises(ValueError, match="expected one of epsilon, x0, v, score, flow, edm"):
        parametrisation("velocity")
    with pytest.raises(TypeError, match="int"):
        parametrisation(3)
    with pytest.raises(ValueError, match="sigma_data"):
        EDM(0.0)
