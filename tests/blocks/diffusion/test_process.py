"""What all processes promise: the noise is solved for, laws are kept, bad input is refused."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.diffusion import (
    PARAMETRISATIONS,
    Cold,
    Cosine,
    Edit,
    Gaussian,
    Karras,
    LinearBeta,
    Mask,
    PoissonFlow,
    Process,
    RectifiedFlow,
    Schedule,
    Shifted,
    Sigmoid,
    Tabulated,
    universal_step,
)

VOCABULARY = 11
SCHEDULES: dict[str, Schedule] = {
    "cosine": Cosine(),
    "linear_beta": LinearBeta(),
    "sigmoid": Sigmoid(),
    "flow": RectifiedFlow(),
    "karras": Karras(),
    "table": Tabulated.linear_beta(100),
    "shifted": Shifted(RectifiedFlow(), 3.0),
}
PROCESSES: dict[str, Process] = {
    "gaussian": Gaussian(Cosine()),
    "poisson_flow": PoissonFlow(3.0, RectifiedFlow()),
    "poisson_flow_many": PoissonFlow(math.inf, Cosine()),
    "cold_blur": Cold("blur", RectifiedFlow()),
    "cold_pixelate": Cold("pixelate", RectifiedFlow()),
    "cold_inpaint": Cold("inpaint", Cosine()),
    "cold_fade": Cold("fade", Sigmoid()),
    "mask": Mask(VOCABULARY, RectifiedFlow()),
    "edit": Edit(VOCABULARY, Cosine()),
}
every = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
continuous = pytest.mark.parametrize(
    "process",
    [each for each in PROCESSES.values() if not each.discrete],
    ids=[name for name, each in PROCESSES.items() if not each.discrete],
)
tokens = pytest.mark.parametrize("process", [PROCESSES["mask"], PROCESSES["edit"]], ids=str)
TIMES = {
    "number": 0.6,
    "zero_dimensional": torch.tensor(0.6),
    "each": torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64),
    "half": torch.tensor([0.25, 0.5, 0.75], dtype=torch.bfloat16),
}


def data(process: Process, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    if process.discrete:
        return torch.randint(VOCABULARY, shape)
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def output(process: Process, x: Tensor) -> Tensor:
    shape = (*x.shape, VOCABULARY)
    return torch.randn(shape, device=x.device) if process.discrete else torch.randn_like(x)


def first(noise: Any) -> Tensor:
    """The noise, or of several its first tensor."""
    return noise if isinstance(noise, Tensor) else noise[0]


@every
@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (3, 1, 1, 1)])
def test_the_noise_that_is_solved_for_corrupts_alike(
    process: Process, t: float | Tensor, shape: tuple[int, ...]
) -> None:
    x0 = data(process, *shape)
    noise = process.fresh(x0)
    x_t = process.corrupt(x0, noise, t)
    assert x_t.shape == x0.shape
    assert x_t.dtype == x0.dtype
    solved = process.noise(x_t, x0, t)
    again = process.corrupt(x0, solved, t)
    if process.discrete:
        assert torch.equal(again, x_t)
    else:
        assert (again - x_t).abs().max() <= 1e-13
        assert (first(solved) - first(noise)).abs().max() <= 1e-12


@continuous
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coefficients_are_float32_and_the_result_is_rounded_once(
    process: Process, dtype: torch.dtype
) -> None:
    x0 = data(process, 3, 2, 4, 4, dtype=dtype)
    noise = torch.randn_like(x0)
    t = torch.tensor([0.1, 0.5, 0.9])
    for low, full in (
        (process.corrupt(x0, noise, t), process.corrupt(x0.float(), noise.float(), t)),
        (process.noise(noise, x0, t), process.noise(noise.float(), x0.float(), t)),
        (process.predict(noise, x0, t), process.predict(noise.float(), x0.float(), t)),
        (
            universal_step(process, noise, x0, t, 0.05, 0.0),
            universal_step(process, noise.float(), x0.float(), t, 0.05, 0.0),
        ),
    ):
        assert low.dtype == dtype
        assert torch.equal(low, full.to(dtype))
    assert process.loss(noise, x0, noise, noise, t).dtype == torch.float32


@every
def test_at_time_zero_there_is_only_data(process: Process) -> None:
    x0 = data(process, 3, 1, 6, 5)
    x_t = process.corrupt(x0, process.fresh(x0), 0.0)
    if process.discrete:
        assert torch.equal(x_t, x0)
    else:
        torch.testing.assert_close(x_t, x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@every
def test_every_combination_takes_a_step(process: Process, schedule: Schedule) -> None:
    dtypes = [torch.float64, torch.float32, torch.bfloat16]
    forms: list[Any] = list(PARAMETRISATIONS)
    if process.discrete:
        dtypes, forms = [torch.int64], [None]
    for form in forms:
        combined: Process
        if isinstance(process, Gaussian):
            combined = Gaussian(schedule, form)
        elif isinstance(process, PoissonFlow):
            combined = PoissonFlow(process.D, schedule, form)
        elif isinstance(process, Cold):
            combined = Cold(process.degradation, schedule, form)
        else:
            combined = type(process)(VOCABULARY, schedule)
        for dtype in dtypes:
            x0 = data(combined, 2, 1, 3, 4, dtype=dtype)
            noise = combined.fresh(x0)
            x_t = combined.corrupt(x0, noise, 0.7)
            given = output(combined, x0)
            loss = combined.loss(given, x0, x_t, noise, 0.7)
            assert loss.shape == (2,)
            assert loss.isfinite().all()
            assert (loss >= 0).all()
            drawn = combined.draw(combined.predict(given, x_t, 0.7), x_t, 0.7)
            for rho in (0.0, 0.4, 1.0):
                x_s = universal_step(combined, x_t, drawn, 0.7, 0.3, rho)
                assert (x_s.shape, x_s.dtype) == (x0.shape, x0.dtype)
                assert x_s.isfinite().all()


@every
def test_the_right_output_is_read_as_the_data(process: Process) -> None:
    x0, t = data(process, 3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.8])
    noise = process.fresh(x0)
    x_t = process.corrupt(x0, noise, t)
    if process.discrete:
        logits = 100.0 * torch.nn.functional.one_hot(x0, VOCABULARY)
        prediction = process.predict(logits, x_t, t)
        torch.testing.assert_close(prediction.exp().sum(-1), torch.ones_like(x0, dtype=torch.float))
        assert torch.equal(process.draw(prediction, x_t, t), x0)
        assert (process.loss(logits, x0, x_t, noise, t) < 1e-12).all()
        return
    for form in PARAMETRISATIONS.values():
        process = type(process)(**{**vars(process), "parametrisation": form})
        alpha, sigma = process.coefficients(x_t, t)
        given = form.from_x0(x0, x_t, alpha, sigma)
        prediction = process.predict(given, x_t, t)
        torch.testing.assert_close(prediction, x0, rtol=1e-6, atol=1e-6)
        assert process.draw(prediction, x_t, t) is prediction
        assert (process.loss(given, x0, x_t, noise, t) < 1e-9).all()


@pytest.mark.parametrize("form", PARAMETRISATIONS)
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), Sigmoid()], ids=repr)
def test_steps_from_pure_noise_are_finite(form: str, schedule: Schedule) -> None:
    process = Gaussian(schedule, form)
    x_t = process.prior((2, 3, 4, 4))
    x0 = process.predict(torch.randn_like(x_t), x_t, 1.0)
    x_s = universal_step(process, x_t, x0, 1.0, 0.9, 0.0)
    assert x_s.isfinite().all()
    if form in ("epsilon", "score"):  # nothing is known: the state is taken for a draw at s
        torch.testing.assert_close(x_s, schedule.sigma(torch.tensor(0.9)) * x_t)


@every
def test_a_generator_determines_everything(process: Process) -> None:
    x0 = data(process, 3, 1, 4, 4)
    t = torch.tensor([0.3, 0.6, 0.9])

    def run(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        noise = process.fresh(x0, generator=generator)
        x_t = process.corrupt(x0, noise, t)
        renewed = process.renew(
            process.noise(x_t, x0, t, generator=generator), 0.5, generator=generator
        )
        results = [first(noise), x_t, first(renewed)]
        if not isinstance(process, Cold):
            results.append(process.prior(x0.shape, generator=generator))
        return results

    state = torch.get_rng_state()
    one, two, other = run(1), run(1), run(2)
    assert all(map(torch.equal, one, two))
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn beside the generator
    if not isinstance(process, Cold):
        assert not torch.equal(one[0], other[0])


@every
def test_renewing_nothing_keeps_the_noise_and_all_of_it_forgets(process: Process) -> None:
    x0 = data(process, 3, 1, 40, 40)
    noise = process.noise(process.corrupt(x0, process.fresh(x0), 0.5), x0, 0.5)
    if isinstance(process, Cold):
        noise = torch.randn_like(x0)
        assert (process.renew(noise, 1.0) == 0).all()
        torch.testing.assert_close(process.renew(noise, 0.6), 0.8 * noise)
        torch.testing.assert_close(process.renew(noise, torch.tensor(0.6)), 0.8 * noise)
        return
    assert process.renew(noise, 0.0) is noise
    kept = process.renew(noise, torch.tensor([0.0, 1.0, 0.0]))
    for row in (0, 2):
        torch.testing.assert_close(first(kept)[row], first(noise)[row], rtol=0, atol=1e-15)
    pair = torch.stack((first(kept)[1].flatten(), first(noise)[1].flatten()))
    assert pair.corrcoef()[0, 1].abs() < 0.12


@every
@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (1, 1, 1, 1), (2, 3, 5, 2)])
def test_any_size_and_layout(process: Process, shape: tuple[int, ...]) -> None:
    straight = data(process, *shape)
    strided = straight.transpose(1, -1).contiguous().transpose(1, -1)
    noise = process.fresh(straight)
    x_t = process.corrupt(straight, noise, 0.5)
    assert torch.equal(x_t, process.corrupt(strided, noise, 0.5))
    x_s = universal_step(process, x_t, straight, 0.5, 0.25, 0.5)
    assert x_s.shape == shape
    given = output(process, x_t)
    assert process.loss(given, straight, x_t, noise, 0.5).shape == shape[:1]


@every
def test_shapes_are_known_on_the_meta_device(process: Process) -> None:
    x0 = data(process, 3, 1, 4, 4).to("meta")
    noise = process.fresh(x0)
    x_t = process.corrupt(x0, noise, torch.empty(3, device="meta"))
    assert (x_t.shape, x_t.dtype, x_t.device) == (x0.shape, x0.dtype, x0.device)
    assert process.predict(output(process, x_t), x_t, 0.3).is_meta


@every
def test_priors_have_the_shape_and_dtype_asked_for(process: Process) -> None:
    x0 = data(process, 5, 1, 4, 4)
    if isinstance(process, Cold):
        process = process.fit(x0)
    x = process.prior([7, 1, 4, 4], dtype=torch.int32 if process.discrete else torch.float16)
    assert x.shape == (7, 1, 4, 4)
    assert x.dtype == (torch.int32 if process.discrete else torch.float16)
    default = process.prior((2, 1, 4, 4)).dtype
    if not isinstance(process, Cold):
        assert default == (torch.int64 if process.discrete else torch.float32)


def test_the_prior_has_the_noise_of_the_schedule() -> None:
    prior = Gaussian(Karras()).prior((4, 10_000))
    assert prior.std() == pytest.approx(80.0, rel=0.03)


@continuous
def test_autocast_changes_nothing(process: Process) -> None:
    x0 = data(process, 3, 1, 6, 5, dtype=torch.float32)
    if isinstance(process, Cold):
        process = process.fit(x0, law="gaussian")

    def run() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        noise = process.fresh(x0, generator=generator)
        x_t = process.corrupt(x0, noise, 0.4)
        prior = process.prior(x0.shape, generator=generator)
        return [x_t, prior, process.loss(x0.sin(), x0, x_t, noise, 0.4)]

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, run(), expected))


@every
def test_processes_are_values(process: Process) -> None:
    x0 = data(process, 3, 1, 4, 4)
    noise = process.fresh(x0)
    for copied in (copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
        assert copied == process
        assert torch.equal(copied.corrupt(x0, noise, 0.5), process.corrupt(x0, noise, 0.5))


@every
def test_gradients_reach_the_output_and_the_data(process: Process) -> None:
    x0 = data(process, 3, 1, 4, 4)
    noise = process.fresh(x0)
    x_t = process.corrupt(x0, noise, 0.6)
    given = output(process, x_t).requires_grad_()
    process.loss(given, x0, x_t, noise, 0.6).sum().backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()
    assert given.grad.abs().sum() > 0


@pytest.mark.parametrize("form", PARAMETRISATIONS)
def test_the_loss_is_the_error_in_the_parametrisation(form: str) -> None:
    process = Gaussian(Cosine(), form)
    x0, noise, given = torch.randn(3, 4, 3, 5, 5, dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.7, 0.9]).double()
    x_t = process.corrupt(x0, noise, t)
    target = PARAMETRISATIONS[form].from_x0(x0, x_t, *process.coefficients(x_t, t))
    expected = (given - target).square().mean((1, 2, 3))
    torch.testing.assert_close(process.loss(given, x0, x_t, noise, t), expected)


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [(name, False) for name in ("gaussian", "poisson_flow", "cold_blur", "mask", "edit")]
    + [(name, True) for name in ("gaussian", "poisson_flow", "mask")],
)
def test_processes_compile_as_a_whole(name: str, dynamic: bool) -> None:
    process = PROCESSES[name]
    x0 = data(process, 2, 1, 4, 4, dtype=torch.float32)
    given, t = output(process, x0), torch.tensor([0.4, 0.8])

    def training(x0: Tensor, given: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        noise = process.fresh(x0)
        x_t = process.corrupt(x0, noise, t)
        loss = process.loss(given, x0, x_t, noise, t)
        drawn = process.draw(process.predict(given, x_t, t), x_t, t)
        return universal_step(process, x_t, drawn, t, t / 2, 0.5), loss

    torch._dynamo.reset()
    compiled = torch.compile(training, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.manual_seed(0)
    expected = training(x0, given, t)
    torch.manual_seed(0)
    for ours, theirs in zip(compiled(x0, given, t), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@every
def test_bad_times_are_refused(process: Process) -> None:
    x0 = data(process, 3, 1, 4, 4)
    noise, given = process.fresh(x0), output(process, x0)
    for t, error in (
        (1.2, ValueError),
        (torch.tensor([0.1, 0.2]), ValueError),
        (torch.tensor([[0.1], [0.2], [0.3]]), ValueError),
        (torch.tensor([-0.1, 0.2, 0.3]), ValueError),
        (torch.tensor([1, 2, 3]), TypeError),
    ):
        for call in (
            lambda t=t: process.corrupt(x0, noise, t),
            lambda t=t: process.noise(x0, x0, t),
            lambda t=t: process.predict(given, x0, t),
            lambda t=t: process.loss(given, x0, x0, noise, t),
            lambda t=t: universal_step(process, x0, x0, t, 0.1, 0.0),
            lambda t=t: universal_step(process, x0, x0, 0.1, t, 0.0),
        ):
            with pytest.raises(error, match="expected"):
                call()


@every
def test_bad_shapes_and_parts_are_refused(process: Process) -> None:
    x0 = data(process, 3, 1, 4, 4)
    noise, given = process.fresh(x0), output(process, x0)
    for call in (
        lambda: process.corrupt(x0[:, :, :2], noise, 0.5),
        lambda: process.noise(x0[:2], x0, 0.5),
        lambda: process.predict(given[:, :, :2], x0, 0.5),
        lambda: process.loss(given, x0[:, :, :2], x0, noise, 0.5),
        lambda: process.loss(given[..., :-1], x0, x0, noise, 0.5),
        lambda: process.renew(noise, 1.5),
        lambda: process.renew(noise, torch.tensor([0.1, 0.2, 1.5])),
        lambda: process.renew(noise, torch.tensor([0.1, 0.2])),
    ):
        with pytest.raises(ValueError, match="expected"):
            call()
    with pytest.raises(TypeError, match="rho"):
        process.renew(noise, "0.5")
    with pytest.raises(TypeError, match="rho"):
        process.renew(noise, torch.tensor(1))


@continuous
def test_data_of_another_kind_are_refused(process: Process) -> None:
    x0 = data(process, 3, 1, 4, 4)
    with pytest.raises(TypeError, match="floating-point"):
        process.corrupt(torch.randint(3, (3, 1, 4, 4)), x0, 0.5)
    with pytest.raises(TypeError, match="floating-point"):
        process.fresh(torch.randint(3, (3, 1, 4, 4)))
    with pytest.raises(TypeError, match="floating-point"):
        process.predict(torch.randint(3, (3, 1, 4, 4)), x0, 0.5)
    with pytest.raises(ValueError, match="batch"):
        process.fresh(torch.tensor(0.5))
    with pytest.raises(ValueError, match="temperature"):
        process.draw(x0, x0, 0.5, temperature=0.5)


@tokens
def test_tokens_of_another_kind_are_refused(process: Process) -> None:
    x0 = data(process, 3, 4)
    noise = process.fresh(x0)
    with pytest.raises(TypeError, match="integer"):
        process.corrupt(x0.float(), noise, 0.5)
    for wrong in (-1, VOCABULARY):
        with pytest.raises(ValueError, match=r"in \[0, 11\)"):
            process.corrupt(x0.index_fill(1, torch.tensor([2]), wrong), noise, 0.5)
    beyond = VOCABULARY + 1
    with pytest.raises(ValueError, match="x_t: expected tokens"):
        process.predict(torch.randn(3, 4, VOCABULARY), torch.full((3, 4), beyond), 0.5)
    with pytest.raises(TypeError, match="logits"):
        process.predict(torch.randint(3, (3, 4, VOCABULARY)), x0, 0.5)
    with pytest.raises(ValueError, match="temperature"):
        process.draw(torch.randn(3, 4, VOCABULARY), x0, 0.5, temperature=-1.0)
    with pytest.raises(TypeError, match="temperature"):
        process.draw(torch.randn(3, 4, VOCABULARY), x0, 0.5, temperature="hot")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Gaussian("cosine"), TypeError, "Schedule"),
        (lambda: Gaussian(Cosine(), "velocity"), ValueError, "parametrisation"),
        (lambda: PoissonFlow(0.0, Cosine()), ValueError, "D"),
        (lambda: PoissonFlow(math.nan, Cosine()), ValueError, "D"),
        (lambda: PoissonFlow("many", Cosine()), TypeError, "D"),
        (lambda: Cold("melt", Cosine()), ValueError, "blur, pixelate, inpaint, fade"),
        (lambda: Cold(3, Cosine()), TypeError, "degradation"),
        (lambda: Cold("blur", Cosine(), start=torch.zeros(3)), TypeError, "fit"),
        (lambda: Mask(0, Cosine()), ValueError, "vocabulary"),
        (lambda: Mask(5.0, Cosine()), TypeError, "vocabulary"),
        (lambda: Mask(5, Cosine(), elbo=1), TypeError, "elbo"),
        (lambda: Edit(1, Cosine()), ValueError, "vocabulary"),
        (lambda: Edit(5, None), TypeError, "Schedule"),
    ],
    ids=range(13),
)
def test_bad_parameters_are_refused(make, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
