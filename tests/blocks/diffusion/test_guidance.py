"""Guidances against exact posteriors of Gaussian mixtures, in every parametrisation; on tokens."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.diffusion import (
    PARAMETRISATIONS,
    AutoGuidance,
    Classifier,
    ClassifierFree,
    Compose,
    Cosine,
    Edit,
    Gaussian,
    Guidance,
    Interval,
    Karras,
    Mask,
    Prediction,
    Predictor,
    RectifiedFlow,
    Schedule,
    Similarity,
    sample,
)

CENTRES = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -2.0]], dtype=torch.float64)
WIDTHS = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
T = torch.tensor([0.2, 0.5, 0.8, 0.95], dtype=torch.float64)
NOTHING = 3
"""The class that stands for none."""
schedules = pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), Karras()], ids=repr)


class Mixture:
    """The exact model of a mixture whose component is the condition; its output as `form` reads."""

    null_condition = NOTHING

    def __init__(self, process: Gaussian) -> None:
        self.process = process
        self.batches: list[int] = []

    def log_class(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t) of every class, (batch, classes)."""
        alpha, sigma = self.process.schedule.alpha(t), self.process.schedule.sigma(t)
        variance = (alpha[:, None] * WIDTHS) ** 2 + sigma[:, None] ** 2
        squared = (x[:, None] - alpha[:, None, None] * CENTRES).square().sum(-1)
        return (SHARES.log() - squared / (2 * variance) - variance.log()).log_softmax(-1)

    def means(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x₀ | x_t, y] of every class, (batch, classes, 2)."""
        alpha, sigma = self.process.schedule.alpha(t), self.process.schedule.sigma(t)
        alpha, sigma = alpha[:, None, None], sigma[:, None, None]
        variance = WIDTHS[:, None] ** 2
        return CENTRES + alpha * variance * (x[:, None] - alpha * CENTRES) / (
            alpha**2 * variance + sigma**2
        )

    def expected(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """E[x₀ | x_t, y], and E[x₀ | x_t] where y is NOTHING."""
        means, classes = self.means(x, t), self.log_class(x, t).exp()
        every = torch.cat((means, (classes[..., None] * means).sum(1, keepdim=True)), 1)
        return every[torch.arange(len(x)), y]

    def __call__(self, network_input: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.batches.append(len(network_input))
        form = self.process.reading
        alpha, sigma = self.process.coefficients(network_input, t)
        x_t = network_input / form.input(torch.ones_like(network_input), alpha, sigma)
        return form.from_x0(self.expected(x_t, t, y), x_t, alpha, sigma)


def mixture(schedule: Schedule, form: str = "v") -> tuple[Mixture, Predictor, Tensor, Tensor]:
    process = Gaussian(schedule, form)
    model = Mixture(process)
    x0 = torch.randn(len(T), 2, dtype=torch.float64)
    x_t = process.corrupt(x0, process.fresh(x0), T)
    return model, Predictor(model, process), x_t, torch.tensor([0, 1, 2, 0])


def no_condition(y: Tensor) -> Tensor:
    return torch.full_like(y, NOTHING)


@schedules
@pytest.mark.parametrize("form", PARAMETRISATIONS)
@pytest.mark.parametrize("scale", [0.5, 2.0, -1.0])
def test_classifier_free_is_one_formula_in_every_parametrisation(
    schedule: Schedule, form: str, scale: float
) -> None:
    model, predict, x_t, y = mixture(schedule, form)
    guided = ClassifierFree(scale)(predict, x_t, T, y, predict.process).data
    assert model.batches == [2 * len(T)]  # one call
    conditional, alone = model.expected(x_t, T, y), model.expected(x_t, T, no_condition(y))
    expected = (1 + scale) * conditional - scale * alone
    assert (guided - expected).abs().max() <= 1e-10
    # Mixing the outputs before they are read is the same.
    alpha, sigma = model.process.coefficients(x_t, T)
    parts = [model.process.reading.from_x0(x, x_t, alpha, sigma) for x in (conditional, alone)]
    mixed = (1 + scale) * parts[0] - scale * parts[1]
    read = model.process.predict(mixed, x_t, T)
    assert (guided - read).abs().max() <= 1e-10


@schedules
def test_a_classifier_turns_the_mean_into_that_of_the_class(schedule: Schedule) -> None:
    """Bayes: the exact log p(y | x_t) at scale 1 gives E[x₀ | x_t, y] of the mixture."""
    model, predict, x_t, y = mixture(schedule)
    seen: list[Tensor] = []

    def log_prob(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        seen.append(t)
        return model.log_class(x, t)[torch.arange(len(x)), y]

    none = no_condition(y)
    with torch.no_grad():
        guided = Classifier(log_prob)(predict, x_t, T, none, predict.process).data
    assert (guided - model.expected(x_t, T, y)).abs().max() <= 1e-10
    assert torch.equal(seen[0], T)
    with torch.inference_mode():
        again = Classifier(log_prob, 3.0)(predict, x_t, T, none, predict.process).data
    # At scale 1 + w it is classifier-free guidance with w.
    free = ClassifierFree(2.0)(predict, x_t, T, y, predict.process).data
    assert (again - free).abs().max() <= 1e-9
    at_one = Classifier(log_prob)(predict, x_t, 1.0, none, predict.process).data
    assert at_one.isfinite().all()


def test_all_channels_are_guided_and_the_variance_is_the_conditional_one() -> None:
    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.cat((x * 0 + y[:, None, None], x * 0 + 10 * y[:, None, None]), 1)

    predict = Predictor(model, Gaussian(Cosine(), "x0"))
    x_t = torch.randn(2, 4, 3)
    guided = ClassifierFree(0.5, null=1)(predict, x_t, 0.5, torch.tensor([3, 5]), predict.process)
    assert (guided.data == torch.tensor([4.0, 7.0])[:, None, None]).all()
    assert guided.variance is not None
    assert (guided.variance == torch.tensor([30.0, 50.0])[:, None, None]).all()
    assert guided.data.shape == x_t.shape


@pytest.mark.parametrize("null", [0.5, torch.tensor(0.5), torch.full((3,), 0.5), "batch"])
def test_null_conditions_are_one_number_one_sample_or_all(null: Any) -> None:
    null = torch.full((2, 3), 0.5) if isinstance(null, str) else null
    given: list[Any] = []

    def model(x: Tensor, t: Tensor, y: Any) -> Tensor:
        given.append(y)
        return x

    predict, x_t = Predictor(model, Gaussian(Cosine(), "x0")), torch.randn(2, 4)
    condition = torch.randn(2, 3)
    ClassifierFree(1.0, null)(predict, x_t, torch.tensor([0.2, 0.3]), condition, predict.process)
    assert torch.equal(given[0], torch.cat((condition, torch.full((2, 3), 0.5))))
    nested = {"text": condition, "more": (condition,)}
    guidance = ClassifierFree(1.0, {"text": null, "more": (null,)})
    guidance(predict, x_t, 0.2, nested, predict.process)
    assert torch.equal(given[1]["text"], given[0])
    assert torch.equal(given[1]["more"][0], given[0])


def test_scale_zero_is_the_model_alone() -> None:
    model, predict, x_t, y = mixture(Cosine())
    plain = predict(x_t, T, y).data
    for guidance in (ClassifierFree(0.0), AutoGuidance(model, 0.0)):
        model.batches.clear()
        assert torch.equal(guidance(predict, x_t, T, y, predict.process).data, plain)
        assert model.batches == [len(T)]


def test_autoguidance_goes_away_from_the_worse_model() -> None:
    model, predict, x_t, y = mixture(Cosine())

    def worse(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return model(x, t, no_condition(y))

    guided = AutoGuidance(worse, 1.5)(predict, x_t, T, y, predict.process).data
    free = ClassifierFree(1.5)(predict, x_t, T, y, predict.process).data
    assert (guided - free).abs().max() <= 1e-12


def test_intervals_guide_within_only() -> None:
    model, predict, x_t, y = mixture(Cosine())
    guidance = ClassifierFree(2.0)
    plain = predict(x_t, T, y).data
    guided = guidance(predict, x_t, T, y, predict.process).data
    between = Interval(guidance, 0.5, 0.8)(predict, x_t, T, y, predict.process).data
    assert torch.equal(between[[0, 3]], plain[[0, 3]])
    torch.testing.assert_close(between[[1, 2]], guided[[1, 2]])
    assert not torch.equal(between[1], plain[1])
    for t, batches in ((0.5, [8]), (0.49, [4]), (torch.tensor(0.9), [4])):
        model.batches.clear()
        Interval(guidance, 0.5, 0.8)(predict, x_t, t, y, predict.process)
        assert model.batches == batches


@pytest.mark.parametrize("on", ["prediction", "state"])
def test_similarity_adds_its_gradient(on: str) -> None:
    """A linear model and a squared distance: the gradient is known."""
    process = Gaussian(RectifiedFlow(), "x0")
    matrix = torch.randn(3, 3, dtype=torch.float64)
    target = torch.randn(3, dtype=torch.float64)
    x_t, t = torch.randn(4, 3, dtype=torch.float64), T

    def closeness(features: Tensor, target: Tensor) -> Tensor:
        return -(features - target).square().sum(1) / 2

    predict = Predictor(lambda x, t, y: x @ matrix, process)
    guidance = Similarity(lambda x: 2 * x, target, 0.3, similarity=closeness, on=on)
    with torch.no_grad():
        guided = guidance(predict, x_t, t, None, process).data
    x0 = x_t @ matrix
    push = 2 * (target - 2 * x0) @ matrix.T if on == "prediction" else 2 * (target - 2 * x_t)
    strength = (t**2 / (1 - t))[:, None]
    torch.testing.assert_close(guided, x0 + 0.3 * strength * push)
    assert not guided.requires_grad


def test_similarity_by_default_is_the_cosine() -> None:
    process = Gaussian(Cosine(), "x0")
    predict = Predictor(lambda x, t, y: x, process)
    x_t, target = torch.randn(2, 1, 4, 4), torch.randn(1, 4, 4)

    def angle(x: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(x.flatten(1), target.reshape(1, -1))

    near = Similarity(None, target, 5.0)(predict, x_t, 0.5, None, process).data
    assert (angle(near) > angle(x_t) + 0.1).all()


def test_guidances_compose() -> None:
    model, predict, x_t, y = mixture(Cosine())

    def toward(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return -(x - 1).square().sum(1)

    free, push = ClassifierFree(1.0), Classifier(toward, 0.1)
    both = Compose(free, push)(predict, x_t, T, y, predict.process).data
    alone = free(predict, x_t, T, y, predict.process).data
    strength = predict.process.schedule.sigma(T) ** 2 / predict.process.schedule.alpha(T)
    torch.testing.assert_close(both, alone + 0.1 * strength[:, None] * -2 * (x_t - 1))

    # A worse model under the same inner guidance: the whole of it is called again.
    def worse(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return 0.5 * model(x, t, y)

    chained = Compose(free, AutoGuidance(worse, 0.5))
    guided = chained(predict, x_t, T, y, predict.process).data
    other = Predictor(worse, predict.process)
    weaker = ClassifierFree(1.0, NOTHING)(other, x_t, T, y, predict.process).data
    torch.testing.assert_close(guided, 1.5 * alone - 0.5 * weaker)
    # The outer one finds the model's null condition through the inner one, here a function.
    identity = Compose(lambda predict, *rest: predict(*rest[:3]), free)
    torch.testing.assert_close(identity(predict, x_t, T, y, predict.process).data, alone)
    nested = Compose(Interval(free, 0.0, 1.0), Compose(push, Interval(push, 0.0, 0.1)))
    torch.testing.assert_close(nested(predict, x_t, T, y, predict.process).data, both)
    nested.check(predict, y, predict.process)


@pytest.mark.parametrize("process", [Mask(5, Cosine()), Edit(5, Cosine())], ids=str)
@pytest.mark.parametrize("scale", [1.5, -0.5])
def test_tokens_are_guided_by_log_probabilities(process: Mask | Edit, scale: float) -> None:
    logits = torch.randn(2, 4, 5)  # of condition 0 and of none

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return logits[y]

    x_t = (
        torch.tensor([[0, 4, 2, 1]]) if isinstance(process, Edit) else torch.tensor([[5, 5, 2, 1]])
    )
    predict = Predictor(model, process)
    data = ClassifierFree(scale, null=1)(predict, x_t, 0.5, torch.tensor([0]), process).data
    torch.testing.assert_close(data.exp().sum(-1), torch.ones(1, 4))
    expected = ((1 + scale) * logits[0] - scale * logits[1]).log_softmax(-1)
    torch.testing.assert_close(data[0, :2], expected[:2])
    if isinstance(process, Mask):
        assert torch.equal(process.draw(data, x_t, 0.5)[:, 2:], x_t[:, 2:])
        assert (data[0, 2:] == -math.inf).sum() == 8
    else:
        torch.testing.assert_close(data[0], expected)


@pytest.mark.parametrize("process", [Mask(5, Cosine()), Edit(5, Cosine())], ids=str)
def test_classifiers_and_similarities_tilt_the_tokens(process: Mask | Edit) -> None:
    weights = torch.randn(4, 6 if isinstance(process, Mask) else 5)
    logits = torch.randn(1, 4, 5)
    predict = Predictor(lambda x, t, y: logits, process)
    x_t = (
        torch.tensor([[4, 4, 2, 1]]) if isinstance(process, Edit) else torch.tensor([[5, 5, 2, 1]])
    )

    def log_prob(hot: Tensor, t: Tensor, condition: Any) -> Tensor:
        assert hot.shape == (1, *weights.shape)
        return (hot * weights).sum((1, 2))

    def linear(x: Tensor, target: Any) -> Tensor:
        return (x * weights[:, : x.shape[-1]]).sum((1, 2))

    expected = (logits + 0.7 * weights[:, :5]).log_softmax(-1)[0, :2]
    for guidance in (
        Classifier(log_prob, 0.7),
        Similarity(None, None, 0.7, similarity=linear),
        Similarity(None, None, 0.7, similarity=linear, on="state"),
    ):
        data = guidance(predict, x_t, 0.5, None, process).data
        torch.testing.assert_close(data[0, :2], expected)
        if isinstance(process, Mask):
            assert torch.equal(process.draw(data, x_t, 0.5)[:, 2:], x_t[:, 2:])


def test_what_only_one_side_holds_impossible_stays_defined() -> None:
    process = Edit(3, Cosine())
    log_probs = {
        0: torch.tensor([[[0.2, 0.8, 0.0]]]).log(),
        1: torch.tensor([[[0.5, 0.0, 0.5]]]).log(),
    }

    class Fixed:
        null_condition = 1

        def __call__(self, x: Tensor, t: Any, y: Tensor, model: Any = None) -> Prediction:
            return Prediction(torch.cat([log_probs[int(each)] for each in y]))

    data = ClassifierFree(1.0)(
        Fixed(), torch.zeros(1, 1, dtype=torch.int64), 0.5, torch.tensor([0]), process
    ).data
    expected = torch.tensor([0.2**2 / 0.5, 0.8, 0.0])
    torch.testing.assert_close(data.exp()[0, 0], expected / expected.sum())


def never(x: Tensor, t: Tensor, y: Any) -> Tensor:
    raise AssertionError("the model ran")


def test_missing_conditions_are_refused_before_the_model_runs() -> None:
    process = Gaussian(Cosine(), "x0")
    predict, x_t, y = Predictor(never, process), torch.zeros(2, 3), torch.tensor([0, 1])
    free: list[Guidance] = [
        ClassifierFree(1.0),
        Interval(ClassifierFree(1.0), 0.0, 1.0),
        Compose(AutoGuidance(never), ClassifierFree(1.0)),
    ]
    for guidance in free:
        with pytest.raises(ValueError, match=r"null_condition; give ClassifierFree\(null="):
            guidance.check(predict, y, process)
    with pytest.raises(ValueError, match="null_condition"):
        ClassifierFree(1.0)(predict, x_t, 0.5, y, process)
    with pytest.raises(ValueError, match=r"a model with a null_condition, got neither"):
        ClassifierFree(1.0).check(predict, None, process)
    with pytest.raises(ValueError, match="expected a condition to guide by, got None"):
        ClassifierFree(1.0, null=1).check(predict, None, process)
    with pytest.raises(ValueError, match="null condition for one sample"):
        ClassifierFree(1.0, null=torch.zeros(7)).check(predict, torch.zeros(2, 3), process)
    with pytest.raises(TypeError, match="dicts and tuples"):
        ClassifierFree(1.0, null=1).check(predict, "a cat", process)
    with pytest.raises(TypeError, match="number or a tensor"):
        ClassifierFree(1.0, null="none").check(predict, y, process)
    with pytest.raises(ValueError, match="one entry per sample"):
        ClassifierFree(1.0, null=1).check(predict, torch.tensor(1), process)


def test_gradients_that_do_not_exist_are_refused_before_the_model_runs() -> None:
    process, other = Gaussian(Cosine(), "x0"), torch.ones(2, requires_grad=True)
    predict, x_t = Predictor(never, process), torch.zeros(2, 3)

    def refused(log_prob: Any, match: str) -> None:
        for guidance in (
            Classifier(lambda x, t, y: log_prob(x)),
            Similarity(None, None, similarity=lambda x, target: log_prob(x), on="state"),
        ):
            with pytest.raises(ValueError, match=match):
                guidance(predict, x_t, 0.5, None, process)

    refused(lambda x: x, "one value per sample")
    refused(lambda x: x.sum(), "one value per sample")
    refused(lambda x: None, "one value per sample")
    refused(lambda x: x.detach().sum(1), "without a gradient")
    refused(lambda x: other * 2, "whose gradient does not reach x")


@pytest.mark.parametrize("process", [Gaussian(Cosine(), "x0"), Mask(5, Cosine())], ids=repr)
@pytest.mark.parametrize("on", ["prediction", "state"])
def test_targets_of_another_shape_are_refused_before_the_model_runs(process: Any, on: str) -> None:
    entries = () if not process.discrete else (6,) if on == "state" else (5,)
    wrong = ((4,), (3, 3, *entries), (1, 2, 3, *entries), (2, 4, *entries))
    for shape in wrong:
        guidance = Interval(Similarity(None, torch.ones(shape), on=on), 0.0, 0.5)
        with pytest.raises(ValueError, match=r"Similarity.target: expected the shape of one"):
            sample(never, process, (2, 3), steps=1, guidance=guidance)
    predict = Predictor(never, process)
    predict.shape = (2, 3)
    for shape in ((3, *entries), (2, 3, *entries), (1, 3, *entries), (1,), ()):
        Similarity(None, torch.ones(shape), on=on).check(predict, None, process)
    # Features of another shape than the data's, and targets of another similarity.
    Similarity(lambda x: x[:, :1], torch.ones(7), on=on).check(predict, None, process)
    Similarity(None, 3, similarity=lambda x, _: x.sum(1), on=on).check(predict, None, process)


def test_targets_of_another_shape_than_the_features_are_refused() -> None:
    process = Gaussian(Cosine(), "x0")
    guidance = Similarity(lambda x: x[:, :2], torch.ones(3))
    with pytest.raises(ValueError, match=r"features, \(2,\), or of all, \(4, 2\)"):
        sample(lambda x, t, y: x, process, (4, 3), steps=1, guidance=guidance)


def test_null_conditions_that_the_model_does_not_take_are_refused_before_it_runs() -> None:
    class Classes:
        null_condition = 2

        def check_condition(self, condition: Any, batch: int) -> None:
            classes = condition["y"][0] if isinstance(condition, dict) else condition
            if len(classes) != batch or not bool(((classes >= 0) & (classes <= 2)).all()):
                raise ValueError(f"y: expected {batch} classes below 3")

        def __call__(self, x: Tensor, t: Tensor, y: Any) -> Tensor:
            return never(x, t, y)

    process, y = Gaussian(Cosine(), "x0"), torch.tensor([0, 1])
    refused: list[tuple[Any, Any]] = [
        (3, y),
        (-1, y),
        (torch.tensor([2, 3]), y),
        ({"y": (3,)}, {"y": (y,)}),
    ]
    for null, condition in refused:
        guidance = Compose(ClassifierFree(1.0, null), AutoGuidance(never))
        with pytest.raises(ValueError, match=r"ClassifierFree.null: .* y: expected 4 classes"):
            sample(Classes(), process, (2, 3), steps=1, guidance=guidance, condition=condition)
    for model in (Classes(), never):
        predict = Predictor(model, process)
        ClassifierFree(1.0, 2).check(predict, y, process)
        ClassifierFree(1.0, {"y": (1,)}).check(predict, {"y": (y,)}, process)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: ClassifierFree(-2.0), ValueError, "≥ -1"),
        (lambda: ClassifierFree(math.nan), ValueError, "≥ -1"),
        (lambda: ClassifierFree("1"), TypeError, "scale"),
        (lambda: Classifier(None), TypeError, "log_prob"),
        (lambda: AutoGuidance("small"), TypeError, "model"),
        (lambda: Interval(ClassifierFree(), 0.6, 0.4), ValueError, "low"),
        (lambda: Interval(None, 0.2, 0.4), TypeError, "guidance"),
        (lambda: Compose(ClassifierFree(), 3), TypeError, "outer"),
        (lambda: Similarity(None, 1.0, on="noise"), ValueError, "on"),
        (lambda: Similarity(3, 1.0), TypeError, "embed"),
        (lambda: Similarity(None, None), TypeError, "target: expected a tensor for the cosine"),
        (lambda: Similarity(None, [1.0]), TypeError, "got list; another similarity"),
    ],
    ids=range(12),
)
def test_bad_parameters_are_refused(make, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_refuses_scales_that_are_not_finite(scale: float) -> None:
    for make in (
        lambda: AutoGuidance(torch.sin, scale),
        lambda: Classifier(torch.sin, scale),
        lambda: Similarity(None, torch.ones(2), scale),
        lambda: ClassifierFree(scale),
    ):
        with pytest.raises(ValueError, match=r"scale: expected a finite number"):
            make()
