"""The predictor: what the model is given, what it may give, and how that is read."""

import pytest
import torch
from torch import Tensor, nn

from ropewalk.blocks.diffusion import (
    Cosine,
    Edit,
    Gaussian,
    Karras,
    Mask,
    Predictor,
    RectifiedFlow,
    Shifted,
    Tabulated,
)
from ropewalk.blocks.diffusion.predict import split_variance


class Recorder:
    """A model that gives zeros and keeps what it was given."""

    def __init__(self, output: Tensor | None = None) -> None:
        self.output = output

    def __call__(self, x: Tensor, t: Tensor, condition: object) -> Tensor:
        self.x, self.t, self.condition = x, t, condition
        return torch.zeros_like(x) if self.output is None else self.output


@pytest.mark.parametrize("t", [0.3, torch.tensor(0.3), torch.tensor([0.3, 0.3, 0.3]).double()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_model_is_told_one_time_per_sample(t: float | Tensor, dtype: torch.dtype) -> None:
    model = Recorder()
    x_t = torch.randn(3, 2, 4).to(dtype)
    prediction = Predictor(model, Gaussian(Cosine(), "v"))(x_t, t, "condition")
    assert model.t.shape == (3,)
    assert model.t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(model.t.float(), torch.full((3,), 0.3))
    assert model.condition == "condition"
    assert prediction.data.dtype == dtype
    assert prediction.variance is None
    expected = (Cosine().alpha(0.3) * x_t.double()).to(dtype)  # v = 0: x̂₀ = αx_t
    torch.testing.assert_close(prediction.data, expected)


def test_edm_scales_the_input_and_reads_the_output() -> None:
    model = Recorder(torch.ones(3, 5).double())
    x_t, sigma = torch.randn(3, 5).double(), float(Karras().sigma(0.7))
    prediction = Predictor(model, Gaussian(Karras(), "edm"))(x_t, 0.7)
    total = sigma**2 + 0.5**2
    torch.testing.assert_close(model.x, x_t / total**0.5)
    expected = 0.5**2 / total * x_t + sigma * 0.5 / total**0.5
    torch.testing.assert_close(prediction.data, expected)


def test_the_clock_is_the_trained_schedules_or_ones_own() -> None:
    model = Recorder()
    x_t, t = torch.randn(2, 3), torch.tensor([0.25, 0.5])
    Predictor(model, Gaussian(Shifted(RectifiedFlow(), 3.0), "flow"))(x_t, t)
    torch.testing.assert_close(model.t, 3 * t / (1 + 2 * t))
    table = Tabulated.linear_beta(1000)
    Predictor(model, Gaussian(table, "epsilon"), model_time=lambda t: t * 1000 - 1)(x_t, t)
    torch.testing.assert_close(model.t, torch.tensor([249.0, 499.0]))


def test_a_learned_variance_is_split_off() -> None:
    output = torch.randn(2, 6, 4, 4)
    x_t = torch.randn(2, 3, 4, 4)
    prediction = Predictor(Recorder(output), Gaussian(Cosine(), "x0"))(x_t, 0.5)
    assert torch.equal(prediction.data, output[:, :3])
    assert prediction.variance is not None
    assert torch.equal(prediction.variance, output[:, 3:])
    assert split_variance(x_t, x_t) == (x_t, None)


def test_null_conditions_are_the_models() -> None:
    class Conditional(nn.Module):
        null_condition = 10

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
            return x

    process = Gaussian(Cosine())
    assert Predictor(Conditional(), process).null_condition == 10
    assert Predictor(Recorder(), process).null_condition is None


def test_another_model_may_be_asked() -> None:
    predict = Predictor(Recorder(torch.zeros(2, 3)), Gaussian(Cosine(), "x0"))
    other = Recorder(torch.ones(2, 3))
    assert (predict(torch.randn(2, 3), 0.5, None, other).data == 1).all()
    assert (predict(torch.randn(2, 3), 0.5).data == 0).all()


@pytest.mark.parametrize("process", [Mask(5, Cosine()), Edit(5, Cosine())], ids=str)
def test_tokens_become_log_probabilities(process: Mask | Edit) -> None:
    model = Recorder(torch.randn(2, 3, 5).to(torch.bfloat16))
    x_t = torch.randint(5, (2, 3))
    prediction = Predictor(model, process)(x_t, 0.5)
    assert prediction.data.shape == (2, 3, 5)
    assert prediction.data.dtype == torch.float32
    assert model.t.dtype == torch.float32
    assert torch.equal(model.x, x_t)


def test_outputs_of_a_wrong_shape_or_kind_are_refused() -> None:
    x_t, process = torch.randn(2, 3, 4), Gaussian(Cosine())
    for shape in ((2, 3, 5), (2, 4, 4), (4, 3, 4), (2, 3), (2, 3, 8)):
        with pytest.raises(ValueError, match="twice its channels"):
            Predictor(Recorder(torch.zeros(shape)), process)(x_t, 0.5)
    with pytest.raises(TypeError, match="floating-point"):
        Predictor(Recorder(torch.zeros(2, 3, 4, dtype=torch.int64)), process)(x_t, 0.5)
    with pytest.raises(TypeError, match="tuple"):
        Predictor(lambda x, t, y: (x, x), process)(x_t, 0.5)
    with pytest.raises(ValueError, match=r"logits of shape \(2, 3, 5\)"):
        Predictor(Recorder(torch.zeros(2, 3, 6)), Mask(5, Cosine()))(torch.zeros(2, 3).long(), 0.5)
    with pytest.raises(TypeError, match="callable"):
        Predictor(None, process)
    with pytest.raises(TypeError, match="Process"):
        Predictor(Recorder(), Cosine())
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Predictor(Recorder(), process)(x_t, 1.5)
    with pytest.raises(ValueError, match="one value per sample"):
        Predictor(Recorder(), process)(x_t, torch.tensor([0.5, 0.5, 0.5]))


def test_gradients_pass_through() -> None:
    layer = nn.Linear(3, 3)
    predict = Predictor(lambda x, t, y: layer(x), Gaussian(Cosine()))
    predict(torch.randn(2, 3), torch.tensor([0.2, 1.0])).data.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0
