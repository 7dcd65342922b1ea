"""diffusers' schedulers on our models and the other way round: the same samples."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from ropewalk.blocks.diffusion import Gaussian
from ropewalk.blocks.diffusion.diffusers_adapter import (
    DiffusersDenoiser,
    parametrisation_of,
    sample_with_scheduler,
    schedule_of,
    wrap_diffusers,
)
from ropewalk.blocks.diffusion.guidance import ClassifierFree
from ropewalk.blocks.diffusion.process import Mask
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.schedule import Cosine, LinearBeta, RectifiedFlow, Shifted, Tabulated

# Their schedulers make arrays of tensors.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TABLE = Tabulated.linear_beta(1000)
BETAS = {"beta_schedule": "linear", "timestep_spacing": "trailing"}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
MEAN, VARIANCE = 0.6, 0.3


def exact(schedule):
    """E[x₀ | x_t] of N(0.6, 0.3), for any schedule: what is sampled depends on the law only."""

    def model(x, t, condition):
        alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
        spread = alpha.square() * VARIANCE + sigma.square()
        return MEAN + alpha * VARIANCE / spread * (x - alpha * MEAN)

    return model


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (DDIMScheduler, {**BETAS, "clip_sample": False}),
        (DDIMScheduler, {**BETAS, "clip_sample": False, "prediction_type": "v_prediction"}),
        (DDIMScheduler, {**BETAS, "clip_sample": False, "prediction_type": "sample"}),
        (EulerDiscreteScheduler, BETAS),
        (HeunDiscreteScheduler, BETAS),
        (DPMSolverMultistepScheduler, BETAS),
        (UniPCMultistepScheduler, BETAS),
        (FlowMatchEulerDiscreteScheduler, {}),
        (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
        (DPMSolverMultistepScheduler, FLOW_SIGMAS),
        (UniPCMultistepScheduler, {**FLOW_SIGMAS, "flow_shift": 2.0}),
    ],
    ids=[
        *("ddim", "ddim v", "ddim x0", "euler", "heun", "dpm", "unipc", "flow", "shifted flow"),
        *("dpm flow", "unipc shifted flow"),
    ],
)
@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine(), LinearBeta()], ids=str)
def test_any_scheduler_drives_a_model_of_any_schedule(kind, config, schedule):
    """The flow from ε to N(0.6, 0.3) is 0.6 + √0.3·ε whatever the path."""
    start = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    found = sample_with_scheduler(
        kind(**config),
        exact(schedule),
        Gaussian(schedule, "x0"),
        start.shape,
        steps=100,
        start=start,
        dtype=torch.float64,
    )
    torch.testing.assert_close(found, MEAN + VARIANCE**0.5 * start, rtol=0, atol=0.09)


@pytest.mark.parametrize("name", ["epsilon", "v", "flow"])
def test_their_ddim_is_ours(name):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 2, 3, padding=1)
    process = Gaussian(TABLE, name)
    start = torch.randn(2, 2, 4, 4)

    def model(x, t, condition):
        return torch.tanh(layer(x)) + t[:, None, None, None]

    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    theirs = sample_with_scheduler(scheduler, model, process, start.shape, steps=10, start=start)
    ours = sample(model, process, start.shape, steps=10, start=start)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-3)


def test_their_flow_matching_is_ours():
    def model(x, t, condition):
        return torch.tanh(x) * (1 + t[:, None, None, None])

    scheduler, start = FlowMatchEulerDiscreteScheduler(shift=2.0), torch.randn(2, 1, 3, 3)
    process = Gaussian(RectifiedFlow(), "flow")
    theirs = sample_with_scheduler(scheduler, model, process, start.shape, steps=8, start=start)
    times = torch.as_tensor(scheduler.sigmas, dtype=torch.float64)
    ours = sample(model, process, start.shape, times=times, start=start)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def tiny_transformer():
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=2,
        out_channels=4,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=5,
        norm_num_groups=1,
    ).eval()


def test_our_sampler_drives_a_transformer_of_diffusers():
    """DDIM by hand with their scheduler and model, and our sampler: the same samples."""
    transformer = tiny_transformer()
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=True)
    labels = torch.tensor([1, 3, 4])
    start = torch.randn(3, 2, 4, 4)
    scheduler.set_timesteps(5)
    x = start
    with torch.no_grad():
        for k in scheduler.timesteps:
            output = transformer(x, timestep=k.expand(3), class_labels=labels).sample
            x = scheduler.step(output.chunk(2, 1)[0], k, x).prev_sample
    model, process = wrap_diffusers(transformer, scheduler)
    found = sample(model, process, start.shape, steps=5, start=start, condition=labels)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4)
    # Its learned variance is there for the ancestral solver, its null class for guidance.
    assert model.null_condition == 5
    for options in ({"solver": "ancestral"}, {"guidance": ClassifierFree(1.5)}):
        other = sample(
            model, process, start.shape, steps=5, start=start, condition=labels, **options
        )
        assert other.isfinite().all()
        assert not torch.allclose(other, found)


def test_labels_of_a_transformer_are_checked_before_it_runs():
    model, process = wrap_diffusers(tiny_transformer(), DDIMScheduler(**BETAS))

    def never(x_t, t, condition):
        raise AssertionError("the model ran")

    model.forward = never
    for labels, message in (
        (torch.tensor([0, 6]), r"class labels in \[0, 6\), got values from 0 to 6"),
        (torch.tensor([[0], [1]]), "a class label for each of 2 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(model, process, (2, 2, 4, 4), steps=1, condition=labels)
    with pytest.raises(TypeError, match="expected integer tokens"):
        sample(model, process, (2, 2, 4, 4), steps=1, condition=torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"ClassifierFree.null: .* got values from 0 to 7"):
        sample(
            model, process, (2, 2, 4, 4), steps=1, condition=torch.tensor([0, 1]),
            guidance=ClassifierFree(1.0, null=7),
        )  # fmt: skip


def test_no_condition_is_the_class_of_none():
    model, _ = wrap_diffusers(tiny_transformer(), DDIMScheduler(**BETAS))
    x, t = torch.randn(2, 2, 4, 4), torch.tensor([0.5, 0.2])
    assert torch.equal(model(x, t), model(x, t, torch.tensor([5, 5])))


def test_a_unet_without_conditions():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4, 4),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
        attention_head_dim=2,
    ).eval()
    model, process = wrap_diffusers(unet, DDPMScheduler(**BETAS))
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 0.251])
    expected = unet(x, torch.tensor([499, 250])).sample
    torch.testing.assert_close(model(x, t), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model(x, t, {"class_labels": None}), expected, rtol=0, atol=1e-6)
    assert set(model.state_dict()) == {f"model.{name}" for name in unet.state_dict()}
    assert sample(model, process, (1, 1, 8, 8), steps=2).shape == (1, 1, 8, 8)


def test_schedules_and_parametrisations_are_read():
    shifted = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert schedule_of(shifted) == Shifted(RectifiedFlow(), 3.0)
    assert parametrisation_of(shifted).name == "flow"
    read = schedule_of(DDPMScheduler(**BETAS))
    torch.testing.assert_close(
        read.alpha(torch.linspace(0, 1, 11)), TABLE.alpha(torch.linspace(0, 1, 11))
    )
    names = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
    for theirs, ours in names.items():
        assert parametrisation_of(DDIMScheduler(prediction_type=theirs)).name == ours


def test_timesteps_are_whole_where_they_should_be():
    model = DiffusersDenoiser(tiny_transformer(), steps=1000, offset=1)
    t = ((torch.arange(1000) + 1) / 1000).float()
    assert torch.equal(model.timestep(t), torch.arange(1000).float())
    torch.testing.assert_close(model.timestep(torch.tensor([0.12345])), torch.tensor([122.45]))


def test_refuses_what_is_no_scheduler_or_model():
    def never(x, t, y):
        raise AssertionError("the model ran")

    process = Gaussian(Cosine(), "v")
    with pytest.raises(TypeError, match="expected a scheduler of diffusers"):
        sample_with_scheduler(object(), never, process, (2, 2), steps=3)
    bad = {"num_train_timesteps": 10, "beta_start": 0.1, "prediction_type": "velocity"}
    with pytest.raises(ValueError, match="prediction_type"):
        sample_with_scheduler(bad, never, process, (2, 2), steps=3)
    with pytest.raises(ValueError, match="expected x_t"):
        sample_with_scheduler(DDIMScheduler(), never, Mask(3, Cosine()), (2, 2), steps=3)
    with pytest.raises(ValueError, match="expected an integer ≥ 1"):
        sample_with_scheduler(DDIMScheduler(), never, process, (2, 2), steps=0)
    with pytest.raises(TypeError, match="timestep"):
        wrap_diffusers(torch.nn.Linear(2, 2), DDIMScheduler())
    with pytest.raises(TypeError, match="alphas_cumprod"):
        schedule_of({"num_train_timesteps": 10, "beta_start": 0.1})
    # Neither betas nor flow matching: other noise levels, or a preconditioned model.
    for kind in (EDMEulerScheduler, IPNDMScheduler):
        with pytest.raises(TypeError, match="expected alphas_cumprod, or flow matching"):
            sample_with_scheduler(kind(), never, process, (2, 2), steps=3)
