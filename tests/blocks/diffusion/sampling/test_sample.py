"""What `sample` promises of any run: seeds, modes, dtypes, callbacks, parts of a run, refusals."""

import copy
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from ropewalk.blocks.diffusion import Gaussian
from ropewalk.blocks.diffusion.guidance import AutoGuidance, ClassifierFree, Interval
from ropewalk.blocks.diffusion.ode import log_likelihood, sample_ode
from ropewalk.blocks.diffusion.process import Cold, Edit, Mask, PoissonFlow
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.schedule import Cosine, Karras, LinearBeta, RectifiedFlow
from ropewalk.blocks.diffusion.solvers import SDE, SOLVERS, Heun

EVERY = sorted(SOLVERS)
STOCHASTIC = ["ancestral", "renoise", "sde"]
PROCESS = Gaussian(Cosine(), "v")


def network(x, t, condition):
    return torch.tanh(x) + t.reshape(-1, *[1] * (x.ndim - 1)).to(x)


def never(x, t, condition):
    raise AssertionError("the model ran")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("solver", EVERY)
def test_samples_are_those_of_the_generator(solver):
    first, again, other = (
        sample(network, PROCESS, (3, 2), steps=4, solver=solver, generator=seeded(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    # Without one the global generator draws.
    torch.manual_seed(1)
    assert torch.equal(sample(network, PROCESS, (3, 2), steps=4, solver=solver), first)


@pytest.mark.parametrize("solver", ["euler", "sde", "heun"])
def test_stochasticity_draws_and_none_of_it_does_not(solver):
    start = torch.randn(3, 2)
    for amount, draws in ((0.0, False), (0.7, True)):
        one, other = (
            sample(
                network,
                Gaussian(LinearBeta(), "v"),
                (3, 2),
                steps=4,
                solver=solver,
                stochasticity=amount,
                start=start,
                generator=seeded(seed),
            )
            for seed in (1, 2)
        )
        assert torch.equal(one, other) != draws


class Recorder(nn.Module):
    """Notes how it is called."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))
        self.inner = nn.Dropout()
        self.seen = []

    def forward(self, x, t, condition):
        self.seen.append((x.dtype, t.dtype, self.training, self.inner.training))
        assert not torch.is_grad_enabled()
        assert not x.is_inference()  # a guidance may want its gradient
        return network(x, t, condition) * self.weight


@pytest.mark.parametrize("fails", [False, True])
def test_modules_run_in_evaluation_mode_and_keep_their_own(fails):
    model, worse = Recorder(), Recorder()
    model.inner.eval()
    worse.eval()
    guidance = Interval(AutoGuidance(worse, 0.5), 0.0, 1.0)

    def callback(step, x, x0, t):
        if fails:
            raise KeyError("stop")

    def run():
        return sample(model, PROCESS, (2, 2), steps=2, guidance=guidance, callback=callback)

    if fails:
        with pytest.raises(KeyError):
            run()
    else:
        assert not run().requires_grad
    assert all(not outer and not inner for *_, outer, inner in model.seen + worse.seen)
    assert model.seen
    assert worse.seen
    assert (model.training, model.inner.training) == (True, False)
    assert (worse.training, worse.inner.training) == (False, False)


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("state", [None, torch.float64, torch.float32, torch.bfloat16])
def test_models_run_in_their_own_dtype_whatever_the_states(own, state):
    model = Recorder(own)
    found = sample(model, PROCESS, (2, 3), steps=2, dtype=state)
    assert found.dtype == (state or torch.promote_types(own, torch.float32))
    times = torch.promote_types(own, torch.float32)
    assert {seen[:2] for seen in model.seen} == {(own, times)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", EVERY)
@pytest.mark.parametrize("schedule", [Cosine(), LinearBeta()], ids=str)
def test_lower_precision_stays_near(schedule, solver, dtype):
    """The same noise in float64 and below, through numbers that only differ by rounding."""
    start = torch.randn(5, 3).to(dtype)
    options = {"steps": 6, "solver": solver}
    if solver in STOCHASTIC[1:]:
        options["stochasticity"] = 0.0
    elif solver == "ancestral":
        options |= {"steps": 1}
    process = Gaussian(schedule, "v")
    found = sample(network, process, (5, 3), start=start, **options)
    exact = sample(network, process, (5, 3), start=start.double(), **options)
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.15}[dtype]
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("solver", EVERY)
@pytest.mark.parametrize("shape", [(1, 1), (0, 3), (4,), (2, 1, 3, 5)], ids=str)
def test_shapes(solver, shape):
    assert sample(network, PROCESS, shape, steps=3, solver=solver).shape == shape
    assert sample(network, PROCESS, shape, steps=1, solver=solver).shape == shape


def test_strides_of_the_start_do_not_matter():
    start = torch.randn(4, 3).T
    found = sample(network, PROCESS, (3, 4), steps=3, start=start)
    assert torch.equal(found, sample(network, PROCESS, (3, 4), steps=3, start=start.contiguous()))


@pytest.mark.parametrize("solver", EVERY)
def test_meta_tensors(solver):
    found = sample(network, PROCESS, (2, 3), steps=3, solver=solver, device="meta")
    assert found.is_meta
    assert found.shape == (2, 3)


@pytest.mark.parametrize("dtype", [None, torch.int32])
@pytest.mark.parametrize("process", [Mask(4, Cosine()), Edit(4, Cosine())], ids=["mask", "edit"])
def test_tokens_have_integer_states(process, dtype):
    def model(x, t, condition):
        return torch.zeros(*x.shape, 4, dtype=torch.bfloat16)

    found = sample(model, process, (3, 5), steps=4, dtype=dtype, solver="ancestral")
    assert found.dtype == (dtype or torch.int64)
    assert int(found.min()) >= 0
    assert int(found.max()) < 4


@pytest.mark.parametrize("solver", ["euler", "ancestral", "heun", "sde"])
def test_a_run_in_two_parts_is_the_run(solver):
    """A one-step method resumes from the state, the times that are left, and the generator."""
    times = torch.linspace(1, 0, 7, dtype=torch.float64)
    options = {"solver": solver}
    if solver == "heun":
        options["solver"] = Heun("angle")
    generator = seeded()
    whole = sample(network, PROCESS, (3, 2), times=times, generator=generator, **options)
    generator = seeded()
    half = sample(network, PROCESS, (3, 2), times=times[:4], generator=generator, **options)
    state = generator.get_state()
    resumed = torch.Generator()
    resumed.set_state(state)
    rest = sample(
        network, PROCESS, (3, 2), times=times[3:], start=half, generator=resumed, **options
    )
    assert torch.equal(rest, whole)


def test_steps_take_the_schedules_own_times():
    found = sample(network, PROCESS, (3, 2), steps=5, generator=seeded())
    times = PROCESS.schedule.times(5)
    for same in (times, times.tolist(), times.numpy()):
        again = sample(network, PROCESS, (3, 2), times=same, generator=seeded())
        assert torch.equal(found, again)


@pytest.mark.parametrize("solver", EVERY)
def test_the_last_step_lands_on_the_prediction(solver):
    """Also where a schedule keeps σ_min at t = 0, and from there if the last time is doubled."""
    goal = torch.randn(2, 3)
    for times in ([1.0, 0.5, 0.0], [1.0, 0.5, 0.0, 0.0]):
        process = Gaussian(Karras(), "x0")
        found = sample(lambda x, t, y: goal, process, (2, 3), times=times, solver=solver)
        assert torch.equal(found, goal)


@pytest.mark.parametrize("stop", [False, np.False_], ids=["python", "numpy"])
@pytest.mark.parametrize("go_on", [True, np.True_, None, 0], ids=str)
def test_callbacks_stop_by_false_of_either_kind(stop, go_on):
    reached = []

    def callback(step, x, x0, t):
        reached.append(step)
        return stop if step == 1 else go_on

    sample(network, PROCESS, (2, 3), steps=4, callback=callback)
    assert reached == [0, 1]


def test_callbacks_see_every_step_and_may_edit_or_stop():
    seen = []

    def note(step, x, x0, t):
        seen.append((step, x.clone(), x0.clone(), float(t)))

    found = sample(network, PROCESS, (2, 3), steps=4, generator=seeded(), callback=note)
    assert [each[0] for each in seen] == [0, 1, 2, 3]
    assert [each[3] for each in seen] == [0.75, 0.5, 0.25, 0.0]
    assert torch.equal(seen[-1][1], found)
    assert torch.equal(seen[-1][2], found)

    stopped = sample(
        network,
        PROCESS,
        (2, 3),
        steps=4,
        generator=seeded(),
        callback=lambda step, *_: step != 1,
    )
    assert torch.equal(stopped, seen[1][1])

    edited = sample(
        network,
        PROCESS,
        (2, 3),
        steps=4,
        generator=seeded(),
        callback=lambda step, x, x0, t: torch.zeros(2, 3) if step == 1 else None,
    )
    from_zero = sample(network, PROCESS, (2, 3), times=[0.5, 0.25, 0.0], start=torch.zeros(2, 3))
    assert torch.equal(edited, from_zero)
    with pytest.raises(ValueError, match=r"callback: expected a state of shape \(2, 3\)"):
        sample(network, PROCESS, (2, 3), steps=2, callback=lambda *_: torch.zeros(1))


def test_progress_wraps_the_steps(capsys, monkeypatch):
    wrapped = []

    def progress(steps):
        for step in steps:
            wrapped.append(step)
            yield step

    plain = sample(network, PROCESS, (2, 3), steps=3, generator=seeded())
    shown = sample(network, PROCESS, (2, 3), steps=3, generator=seeded(), progress=progress)
    bar = sample(network, PROCESS, (2, 3), steps=3, generator=seeded(), progress=True)
    assert wrapped == [0, 1, 2]
    assert torch.equal(plain, shown)
    assert torch.equal(plain, bar)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"pip install 'ropewalk\[diffusion\]'"):
        sample(never, PROCESS, (2, 3), steps=3, progress=True)


def test_a_guidance_is_any_function_of_its_form():
    def halved(predict, x_t, t, condition, process):
        prediction = predict(x_t, t, condition)
        return prediction._replace(data=prediction.data / 2)

    seen = []
    found = sample(
        network,
        PROCESS,
        (2, 3),
        steps=2,
        guidance=halved,
        generator=seeded(),
        callback=lambda step, x, x0, t: seen.append(x0),
    )
    first = sample(network, PROCESS, (2, 3), steps=1, generator=seeded())
    torch.testing.assert_close(seen[0], first / 2)
    torch.testing.assert_close(seen[-1], found)


def test_a_compiled_model_is_sampled_like_any_other():
    layer = nn.Linear(3, 3)

    def model(x, t, condition):
        return layer(x) + t[:, None]

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, expected = (
        sample(each, PROCESS, (2, 3), steps=3, generator=seeded()) for each in (compiled, model)
    )
    torch.testing.assert_close(found, expected)


def test_where_g_is_infinite_the_noise_is_drawn_anew():
    """The reverse SDE from α = 0: the first step forgets the start, but for what is predicted."""
    zero = torch.zeros(4000, 1, dtype=torch.float64)
    found = sample(
        lambda x, t, y: torch.zeros_like(x),
        Gaussian(RectifiedFlow(), "x0"),
        (4000, 1),
        times=[1.0, 0.6],
        start=zero,
        solver="sde",
    )
    torch.testing.assert_close(found.std().item(), 0.6, rtol=0.05, atol=0)
    own = sample(
        lambda x, t, y: torch.zeros_like(x),
        Gaussian(RectifiedFlow(), "x0"),
        (4000, 1),
        times=[1.0, 0.6],
        start=zero,
        solver=SDE(diffusion=lambda t: 0.5 * t),
    )
    torch.testing.assert_close(own.std().item(), math.sqrt(0.4 * 0.5), rtol=0.05, atol=0)


TOKENS, COLD = Mask(4, Cosine()), Cold("fade", Cosine())
POISSON = PoissonFlow(8, Cosine(), "v")
LABELS = torch.zeros(2, dtype=torch.long)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "expected an integer ≥ 1, got 0"),
        ({"steps": None}, "expected steps or times, got neither"),
        ({"steps": 3, "times": [1.0, 0.0]}, "steps=3 and 2 times"),
        ({"times": [1.0]}, "at least two times"),
        ({"times": [0.0, 1.0]}, "falling times, got 0 before 1"),
        ({"times": [1.0, 0.5, 0.5]}, r"falling times, got 0\.5 before 0\.5"),
        ({"times": [1.0, 0.0, 0.0]}, "falling times, got 0 before 0"),
        ({"times": [1.5, 0.0]}, r"times in \[0, 1\]"),
        ({"times": [1.0, float("nan")]}, r"times in \[0, 1\]"),
        ({"solver": "rk4"}, "expected one of euler, ancestral"),
        ({"stochasticity": -0.1}, r"in \[0, 1\], got -0\.1"),
        ({"stochasticity": 1.1}, r"in \[0, 1\], got 1\.1"),
        ({"solver": "dpmpp_2m", "stochasticity": 0.5}, "'dpmpp_2m' takes none, got 0"),
        ({"solver": "ancestral", "stochasticity": 1.0}, "'ancestral' takes none"),
        ({"process": TOKENS, "solver": "heun"}, r"'heun' is defined for .*got 'mask'"),
        ({"process": TOKENS, "solver": "sde"}, r"'sde' is defined for .*got 'mask'"),
        ({"process": COLD, "solver": "ancestral"}, r"'ancestral' is defined for .*got 'cold'"),
        ({"process": COLD, "solver": "dpmpp_2m"}, r"'dpmpp_2m' is defined for .*got 'cold'"),
        ({"process": POISSON, "solver": "sde"}, r"'sde' is defined for .*'poisson_flow'"),
        ({"process": POISSON, "solver": "heun", "stochasticity": 0.1}, "not the sum"),
        ({"solver": Heun("sigma")}, "infinite where the schedule's α is 0"),
        ({"temperature": 0.5}, "which draws no tokens"),
        ({"process": TOKENS, "temperature": 0.0}, "temperature: expected a finite number > 0"),
        ({"shape": ()}, r"expected \(batch, …\)"),
        ({"shape": (2, -1)}, "expected an integer ≥ 0"),
        ({"start": torch.zeros(2, 4)}, r"expected the shape \(2, 3\), got \(2, 4\)"),
        ({"condition": torch.zeros(5)}, "expected one for each of 2 samples"),
        ({"guidance": ClassifierFree(1.0), "condition": LABELS}, "null"),
        ({"guidance": ClassifierFree(1.0, null=0)}, "condition"),
        ({"device": "meta", "generator": torch.Generator()}, "expected a generator on 'meta'"),
    ],
)
def test_refuses_before_the_model_runs(changes, message):
    options = {"shape": (2, 3), "process": PROCESS, "steps": None if "times" in changes else 2}
    options |= changes
    with pytest.raises(ValueError, match=message):
        sample(never, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "model: expected a callable"),
        ({"process": "gaussian"}, "process: expected a Process"),
        ({"solver": 2}, "expected a name or a Solver, got 2"),
        ({"solver": Heun}, r"got the class Heun; take an instance, Heun\(\)"),
        ({"model": lambda x, t: x}, r"of three arguments .* got one of \(x, t\); wrap it"),
        ({"model": nn.Linear(3, 3)}, r"of three arguments .* got one of \(input\)"),
        ({"generator": [torch.zeros(2)] * 2}, "got list of 2"),
        ({"steps": 2.0}, "expected an integer ≥ 1"),
        ({"stochasticity": "much"}, r"a number in \[0, 1\]"),
        ({"guidance": 2.0}, "guidance: expected None or a callable"),
        ({"shape": 2}, r"shape: expected integers \(batch, …\), got 2"),
        ({"start": [[0.0] * 3] * 2}, "start: expected a tensor, got list"),
        ({"start": torch.zeros(2, 3).long()}, "start: expected floating-point data"),
        ({"start": torch.zeros(2, 3), "process": TOKENS}, "start: expected integer tokens"),
        ({"generator": 3}, r"generator: expected a torch\.Generator, got 3"),
        ({"callback": 3}, r"callback: expected None or a callable \(step, x, x0, t\), got 3"),
        ({"progress": 3}, "progress: expected True, False or a function"),
    ],
)
def test_refuses_what_is_of_another_kind(changes, message):
    options = {"model": never, "process": PROCESS, "shape": (2, 3), "steps": 2} | changes
    with pytest.raises(TypeError, match=message):
        sample(**options)


def test_a_model_may_refuse_a_condition_before_any_work():
    class Choosy:
        __call__ = staticmethod(never)

        def check_condition(self, condition, batch):
            raise ValueError(f"no {condition} for {batch}")

    for run in (sample, sample_ode):
        options = {"steps": 2} if run is sample else {}
        with pytest.raises(ValueError, match="no red for 2"):
            run(Choosy(), PROCESS, (2, 3), condition="red", **options)
    with pytest.raises(ValueError, match="no red for 2"):
        log_likelihood(Choosy(), PROCESS, torch.zeros(2, 3), condition="red")


def test_conditions_of_another_batch_are_not_guided():
    """Also within dicts and tuples, of which `sample` alone does not know what they hold."""
    condition = {"text": torch.zeros(3), "more": (torch.zeros(2),)}
    guidance = ClassifierFree(1.0, null={"text": 0, "more": (0,)})
    with pytest.raises(ValueError, match=r"condition\['text'\]: expected one entry for each of 2"):
        sample(never, PROCESS, (2, 3), steps=1, condition=condition, guidance=guidance)


def test_refuses_solvers_that_cannot_be():
    for wrong in (Heun, SDE):
        assert copy.deepcopy(wrong()) == wrong()
    with pytest.raises(ValueError, match="expected None or one of"):
        Heun("time")
    with pytest.raises(ValueError, match="0 ≤ low < high"):
        Heun(low=2.0, high=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", EVERY)
def test_on_a_device(solver, dtype):
    generator = torch.Generator("cuda").manual_seed(0)
    model = Recorder(dtype).cuda()
    found = sample(model, PROCESS, (4, 3), steps=5, solver=solver, generator=generator)
    assert found.is_cuda
    assert found.isfinite().all()
