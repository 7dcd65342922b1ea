"""denoising_loss: by hand for every process, weightings as changes of parametrisation, dropout."""

import copy

import pytest
import torch
from torch import nn

from ropewalk.blocks.diffusion import PARAMETRISATIONS, Gaussian, convert
from ropewalk.blocks.diffusion.process import Cold, Edit, Mask, PoissonFlow
from ropewalk.blocks.diffusion.schedule import Cosine, Karras, LinearBeta, RectifiedFlow
from ropewalk.blocks.diffusion.train import LogitNormal, MinSNR, Uniform, denoising_loss

INNER = Uniform(0.05, 0.95)
CONTINUOUS = [
    Gaussian(RectifiedFlow(), "flow"),
    Gaussian(Karras(), "edm"),
    PoissonFlow(16, Cosine(), "epsilon"),
    Cold(lambda x0, severity: x0 * (1 - severity), RectifiedFlow()),
]
DISCRETE = [Mask(5, Cosine()), Edit(5, RectifiedFlow())]


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


class Counting:
    """A model that must not run, and says so."""

    null_condition = 3

    def __call__(self, x, t, condition):
        raise AssertionError("the model ran")


@pytest.mark.parametrize("process", CONTINUOUS, ids=lambda p: p.kind + str(p.parametrisation))
def test_is_the_processs_own_loss_at_times_and_noise_of_the_generator(process):
    x0 = torch.randn(6, 2, 3, dtype=torch.float64)
    seen = []

    def model(x, t, condition):
        seen.append((x, t, condition))
        return torch.sin(3 * x) + t[:, None, None]

    loss = denoising_loss(model, process, x0, "y", times=LogitNormal(), generator=seeded())
    generator = seeded()
    noise = process.fresh(x0, generator=generator)
    t = LogitNormal()(6, process.schedule, generator=generator)
    x_t = process.corrupt(x0, noise, t)
    (given, times, condition), *rest = seen
    assert (condition, rest) == ("y", [])
    torch.testing.assert_close(given, process.model_input(x_t, t), rtol=0, atol=0)
    output = torch.sin(3 * given) + times[:, None, None]
    expected = process.loss(output, x0, x_t, noise, t)
    assert loss.shape == (6,)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("process", DISCRETE, ids=lambda p: p.kind)
def test_tokens_have_a_cross_entropy(process):
    x0 = torch.randint(5, (7, 4))
    logits = nn.Embedding(6, 5)
    loss = denoising_loss(lambda x, t, y: logits(x), process, x0, generator=seeded())
    generator = seeded()
    noise = process.fresh(x0, generator=generator)
    t = Uniform()(7, process.schedule, generator=generator).float()
    x_t = process.corrupt(x0, noise, t)
    torch.testing.assert_close(loss, process.loss(logits(x_t), x0, x_t, noise, t))
    loss.mean().backward()
    assert logits.weight.grad is not None


@pytest.mark.parametrize("name", sorted(PARAMETRISATIONS))
def test_a_model_that_knows_the_data_has_no_loss(name):
    process = Gaussian(Cosine(), name)
    x0 = torch.randn(5, 3, dtype=torch.float64)
    # "edm" hands the network a scaled input; the state is what it was scaled from.

    def model(x, t, condition):
        alpha, sigma = (f(t)[:, None] for f in (process.schedule.alpha, process.schedule.sigma))
        x_t = x / process.reading.input(torch.ones_like(x), alpha, sigma)
        return process.reading.from_x0(x0, x_t, alpha, sigma)

    loss = denoising_loss(model, process, x0, times=INNER)
    torch.testing.assert_close(loss, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-20)


@pytest.mark.parametrize("schedule", [LinearBeta(), RectifiedFlow(), Karras(0.1, 5.0)], ids=str)
@pytest.mark.parametrize("wanted", sorted(PARAMETRISATIONS))
@pytest.mark.parametrize("own", sorted(PARAMETRISATIONS))
def test_a_weighting_is_the_loss_in_that_parametrisation(own, wanted, schedule):
    x0 = torch.randn(4, 5, dtype=torch.float64)

    def guess(x_t, t):
        return torch.tanh(x_t) * (1 - t[:, None])  # an x̂₀

    def loss(process, weighting):
        reading = process.reading

        def model(x, t, condition):
            alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
            x_t = x / reading.input(torch.ones_like(x), alpha, sigma)
            return convert(guess(x_t, t), x_t, alpha, sigma, "x0", reading)

        return denoising_loss(
            model, process, x0, times=INNER, weighting=weighting, generator=seeded()
        )

    weighted = loss(Gaussian(schedule, own), wanted)
    torch.testing.assert_close(weighted, loss(Gaussian(schedule, wanted), None), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x0", lambda snr: snr.clamp(max=5)),
        ("epsilon", lambda snr: snr.clamp(max=5) / snr),
        ("v", lambda snr: snr.clamp(max=5) / (snr + 1)),
    ],
    ids=["x0", "epsilon", "v"],
)
def test_min_snr_has_the_weights_of_its_paper(name, expected):
    schedule, t = Cosine(), torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    weights = MinSNR(5.0)(Gaussian(schedule, name), t)
    torch.testing.assert_close(weights, expected(schedule.log_snr(t).exp()), rtol=1e-12, atol=0)


def test_a_weighting_of_ones_own():
    x0, process = torch.randn(3, 2), Gaussian(RectifiedFlow(), "flow")
    plain = denoising_loss(lambda x, t, y: x, process, x0, generator=seeded())
    seen = []

    def weighting(process, t):
        seen.append(t)
        return 2 * t

    weighted = denoising_loss(
        lambda x, t, y: x, process, x0, weighting=weighting, generator=seeded()
    )
    torch.testing.assert_close(weighted, plain * 2 * seen[0].float())


@pytest.mark.parametrize("null", [3, torch.tensor([1.0, 2.0])], ids=["label", "embedding"])
def test_dropped_conditions_are_the_null_condition(null):
    labels = isinstance(null, int)
    condition = torch.arange(4000) % 3 if labels else torch.zeros(4000, 2)
    x0, seen = torch.randn(4000, 1), []

    class Model:
        null_condition = null

        def __call__(self, x, t, condition):
            seen.append(condition)
            return x

    process = Gaussian(RectifiedFlow(), "flow")
    for share in (0.0, 0.25, 1.0):
        denoising_loss(Model(), process, x0, condition, condition_dropout=share, generator=seeded())
        found = seen[-1] if labels else seen[-1].unbind(-1)[0].long() * 3
        dropped = found == 3
        torch.testing.assert_close(dropped.double().mean().item(), share, rtol=0, atol=0.03)
        assert torch.equal(seen[-1][~dropped], condition[~dropped])
    assert torch.equal(seen[-1], torch.as_tensor(null).to(condition).expand_as(condition))


def test_half_precision_models_have_a_float32_loss_and_gradients():
    layer = nn.Linear(3, 3, dtype=torch.bfloat16)
    x0 = torch.randn(2, 3, dtype=torch.bfloat16)
    loss = denoising_loss(lambda x, t, y: layer(x), Gaussian(Cosine(), "v"), x0)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    gradient = layer.weight.grad
    assert gradient is not None
    assert gradient.dtype == torch.bfloat16


def test_samples_of_one_element_and_empty_batches():
    process = Gaussian(Cosine(), "v")
    assert denoising_loss(lambda x, t, y: x, process, torch.randn(3)).shape == (3,)
    assert denoising_loss(lambda x, t, y: x, process, torch.randn(0, 2)).shape == (0,)


class InItsOwn(nn.Module):
    """A layer that is told the state in its own dtype."""

    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.Linear(4, 4, dtype=dtype)

    def forward(self, x_t, t, condition):
        assert x_t.dtype == self.layer.weight.dtype
        return self.layer(x_t)


@pytest.mark.parametrize("data", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float64])
def test_models_are_trained_in_their_own_dtype_whatever_the_datas(own, data):
    model, process, x0 = InItsOwn(own), Gaussian(RectifiedFlow(), "flow"), torch.randn(3, 4)
    loss = denoising_loss(model, process, x0.to(data))
    assert loss.dtype == torch.promote_types(data, torch.float32)
    loss.mean().backward()
    gradient = model.layer.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()


def test_the_loss_compiles_with_its_model():
    process, x0 = Gaussian(RectifiedFlow(), "flow"), torch.randn(3, 4)
    model = InItsOwn(torch.bfloat16)

    def loss(x):
        return denoising_loss(model, process, x, weighting="v")

    torch.manual_seed(0)
    expected = loss(x0)
    torch.manual_seed(0)
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(x0)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"condition_dropout": 1.5}, r"expected a number in \[0, 1\], got 1\.5"),
        ({"condition_dropout": 0.1}, "there is no condition"),
        ({"condition": torch.zeros(5)}, "expected one for each of 4 samples, got shape"),
        ({"weighting": "velocity"}, "expected one of epsilon, x0"),
        ({"weighting": lambda process, t: t[:1]}, "times' shape"),
        ({"times": lambda *a, **k: torch.zeros(3)}, "expected 4 times, got shape"),
    ],
    ids=["share", "no condition", "batch", "weighting", "weights", "times"],
)
def test_refuses_before_the_model_runs(changes, message):
    with pytest.raises(ValueError, match=message):
        denoising_loss(Counting(), Gaussian(Cosine(), "v"), torch.randn(4, 2), **changes)


def test_refuses_dropping_without_a_null_condition():
    def model(x, t, y):
        raise AssertionError("the model ran")

    process, x0, labels = Gaussian(Cosine(), "v"), torch.randn(4, 2), torch.zeros(4)
    with pytest.raises(ValueError, match=r"there is no `model\.null_condition`"):
        denoising_loss(model, process, x0, labels, condition_dropout=0.1)
    with pytest.raises(TypeError, match="drop such conditions before"):
        denoising_loss(Counting(), process, x0, {"y": labels}, condition_dropout=0.1)


@pytest.mark.parametrize("process", [DISCRETE[0], CONTINUOUS[3]], ids=["mask", "cold"])
def test_refuses_a_weighting_of_losses_that_are_no_squared_error(process):
    x0 = torch.randint(5, (4, 2)) if process.discrete else torch.randn(4, 2)
    with pytest.raises(ValueError, match="whose loss is no squared error"):
        denoising_loss(Counting(), process, x0, weighting="v")


@pytest.mark.parametrize(
    ("x0", "options", "error", "message"),
    [
        ([torch.zeros(2)] * 2, {}, TypeError, r"x0: expected a tensor \(batch, …\), got list of 2"),
        (torch.zeros(2, 3, dtype=torch.uint8), {}, TypeError, "floating-point data, got .*uint8"),
        (None, {"times": "logit-normal"}, TypeError, r"LogitNormal\(\) .* got 'logit-normal'"),
        (None, {"times": LogitNormal}, TypeError, "times: .* got the class LogitNormal"),
        (None, {"weighting": "snr"}, ValueError, r"weighting: .* MinSNR\(5.0\), got 'snr'"),
        (None, {"weighting": MinSNR}, TypeError, "weighting: .* got the class MinSNR"),
    ],
    ids=["list", "bytes", "times", "class", "weighting", "weighting class"],
)
def test_says_how_to_mend_what_is_of_another_kind(x0, options, error, message):
    x0 = torch.zeros(2, 3) if x0 is None else x0
    with pytest.raises(error, match=message):
        denoising_loss(Counting(), Gaussian(Cosine(), "v"), x0, **options)


def test_objects_can_be_copied():
    for each in (MinSNR(3.0), LogitNormal(), Uniform(stratified=True)):
        assert copy.deepcopy(each) == each
