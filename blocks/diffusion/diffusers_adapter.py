"""diffusers' schedulers for our denoisers, and its models for our sampler. Nothing is imported.

    sample_with_scheduler   any scheduler of diffusers drives a denoiser of ours, whatever schedule
                            and parametrisation that was trained with: the state is carried to the
                            time of the same log-SNR, the answer to what the scheduler asks for
    wrap_diffusers          a model of diffusers and its scheduler's configuration, as a model and a
                            process for `sample`. (`ropewalk.blocks.denoiser.from_diffusers`
                            copies the weights of its DiT into the library's own model.)

Times: step k of T of a table of betas is our t = (k + 1)/T; of flow matching it is t = k/T. What
they call "flow_prediction" and the output of flow-matching models is our "flow", ε − x₀.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.diffusion.checks import require_tokens
from ropewalk.blocks.diffusion.parametrisation import PARAMETRISATIONS, Parametrisation
from ropewalk.blocks.diffusion.predict import Model
from ropewalk.blocks.diffusion.process import Affine, Gaussian
from ropewalk.blocks.diffusion.sampler.calls import SamplingPredictor, guided, not_training
from ropewalk.blocks.diffusion.sampler.checks import check_condition, check_guidance, check_shape
from ropewalk.blocks.diffusion.schedule import RectifiedFlow, Schedule, Shifted, Tabulated

PREDICTION_TYPES = {
    "epsilon": "epsilon",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
"""What diffusers calls our parametrisations."""


def configuration(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration, or that of a `scheduler_config.json` that was read.

    Raises:
        TypeError: there is none.
    """
    found = getattr(scheduler, "config", scheduler)
    if not isinstance(found, Mapping) or "num_train_timesteps" not in found:
        raise TypeError(
            "scheduler: expected a scheduler of diffusers, or its configuration with "
            f"num_train_timesteps, got {type(scheduler).__name__}"
        )
    return dict(found)


def is_flow_matching(scheduler: Any) -> bool:
    """Whether a scheduler's noise levels are those of rectified flow.

    Those made for it have a shift and no betas; others are told to with `use_flow_sigmas`.
    """
    config = configuration(scheduler)
    betas = any(name.startswith("beta") for name in config)
    return bool(config.get("use_flow_sigmas")) or ("shift" in config and not betas)


def schedule_of(scheduler: Any) -> Schedule:
    """The schedule that a scheduler's models are trained with.

    Args:
        scheduler: with a table `alphas_cumprod`; or one of flow matching, whose shift is read.

    Returns:
        `Tabulated`, or `RectifiedFlow`, `Shifted` if it is.

    Raises:
        TypeError: neither of them, such as EDM's, whose models are preconditioned.
    """
    config = configuration(scheduler)
    if is_flow_matching(scheduler):
        shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
        return RectifiedFlow() if shift == 1 else Shifted(RectifiedFlow(), shift)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise TypeError(
            f"scheduler: expected alphas_cumprod, or flow matching, got {type(scheduler).__name__}"
        )
    return Tabulated(tuple(float(each) for each in table))


def parametrisation_of(scheduler: Any) -> Parametrisation:
    """The parametrisation that a scheduler expects of its model.

    Raises:
        ValueError: its `prediction_type` is not known.
    """
    if is_flow_matching(scheduler):
        return PARAMETRISATIONS["flow"]
    name = configuration(scheduler).get("prediction_type", "epsilon")
    if name not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction_type: expected one of {', '.join(PREDICTION_TYPES)}, got {name!r}"
        )
    return PARAMETRISATIONS[PREDICTION_TYPES[name]]


def noise_levels(
    scheduler: Any, table: Schedule, timestep: Tensor | float
) -> tuple[Tensor, Tensor]:
    """α and σ of the model's input at one of a scheduler's timesteps, 0-d float64."""
    k = torch.as_tensor(timestep).detach().double().cpu()
    steps = configuration(scheduler)["num_train_timesteps"]
    if is_flow_matching(scheduler):  # its timesteps are shifted already
        return 1 - k / steps, k / steps
    t = (k + 1) / steps
    return table.alpha(t), table.sigma(t)


@torch.no_grad()
def sample_with_scheduler(
    scheduler: Any,
    model: Model,
    process: Affine,
    shape: Sequence[int],
    *,
    steps: int,
    guidance: Any = None,
    condition: Any = None,
    start: Float[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "batch ..."]:
    """Samples of our denoiser by a scheduler of diffusers.

    Example:
        >>> scheduler = diffusers.UniPCMultistepScheduler(prediction_type="v_prediction")
        >>> images = sample_with_scheduler(scheduler, model, process, (4, 3, 32, 32), steps=20)

    Args:
        scheduler: any with set_timesteps, timesteps and step.
        model: `model(x_t, t, condition)`.
        process: with which it was trained; another schedule than the scheduler's will do.
        shape: (batch, …) of the samples.
        steps: of the scheduler.
        guidance: as for `sample`.
        condition: as for `sample`.
        start: standard normal noise; None draws it.
        generator: of everything that is drawn.
        dtype: of the states.
        device: of the states.

    Returns:
        Samples of `shape`.

    Raises:
        ValueError, TypeError: before the model runs, for a process without α and σ, a number out of
            its range, and what the guidance refuses.
    """
    require_integer("sample_with_scheduler", 1, steps=steps)
    if not isinstance(process, Affine):
        raise ValueError(
            f"process: expected x_t = αx₀ + σε, Gaussian or PoissonFlow, got {process!r}"
        )
    wanted, table = parametrisation_of(scheduler), schedule_of(scheduler)
    check_shape(shape, start)
    check_condition(shape, condition, model)
    predictor = SamplingPredictor(model, process)
    check_guidance(guidance, predictor, condition, process)
    predict = guided(predictor, guidance, condition)

    scheduler.set_timesteps(steps, device=device)
    if start is None:
        start = torch.randn(*shape, generator=generator, dtype=dtype, device=device)
    x = start.to(device=device, dtype=dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
    scale_input = getattr(scheduler, "scale_model_input", lambda x, timestep: x)
    options = (
        {"generator": generator}
        if "generator" in inspect.signature(scheduler.step).parameters
        else {}
    )
    with not_training(model, guidance):
        for timestep in scheduler.timesteps:
            alpha, sigma = noise_levels(scheduler, table, timestep)
            t = process.schedule.time_at(2 * (alpha.log() - sigma.log()))
            x_in = scale_input(x, timestep)
            ours = process.schedule.alpha(t), process.schedule.sigma(t)
            # At the same log-SNR our state is a multiple of theirs; of α and σ one may be 0.
            carried = ours[1] / sigma if sigma > alpha else ours[0] / alpha
            x0 = predict(carried.to(x_in) * x_in, t).data
            output = wanted.from_x0(x0, x_in, alpha.to(x_in), sigma.to(x_in))
            x = scheduler.step(output, timestep, x, **options).prev_sample
    return x


class DiffusersDenoiser(nn.Module):
    """A model of diffusers as `model(x_t, t, condition)`.

    Args:
        model: its first argument is the state; it has `timestep`, and `class_labels` or
            `encoder_hidden_states` if it is conditioned.
        steps: T, with which it was trained.
        offset: t·T − offset is its timestep: 1 for tables, 0 for flow matching.
        null_condition: what stands for "no condition"; None takes, for class labels of a DiT, the
            number of its classes.

    Attributes:
        null_condition: see there.
    """

    def __init__(
        self, model: nn.Module, *, steps: int, offset: int, null_condition: Any = None
    ) -> None:
        super().__init__()
        parameters = inspect.signature(model.forward).parameters
        if "timestep" not in parameters:
            raise TypeError(
                f"model: expected forward(x, timestep, …) as of diffusers, got {list(parameters)}"
            )
        self.model = model
        self.steps = steps
        self.offset = offset
        self._state = next(iter(parameters))
        self._condition = next(
            (name for name in ("class_labels", "encoder_hidden_states") if name in parameters), None
        )
        if null_condition is None and self._condition == "class_labels":
            null_condition = getattr(getattr(model, "config", None), "num_embeds_ada_norm", None)
        self.null_condition = null_condition

    def extra_repr(self) -> str:
        """Its times."""
        return f"steps={self.steps}, offset={self.offset}"

    def timestep(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The model's timesteps; whole where t is one up to its rounding."""
        k = t.double() * self.steps - self.offset
        whole = k.round()
        return torch.where((k - whole).abs() < 1e-3, whole, k).to(t.dtype)

    def check_condition(self, condition: Any, batch: int) -> None:
        """Refuses class labels that a DiT does not have; `sample` asks before its first step.

        Raises:
            TypeError: no integers.
            ValueError: another number of them, or out of their range.
        """
        classes = getattr(getattr(self.model, "config", None), "num_embeds_ada_norm", None)
        if self._condition != "class_labels" or classes is None:
            return
        if condition is None or isinstance(condition, Mapping):
            return
        if isinstance(condition, Tensor) and not condition.is_meta:
            condition = condition.cpu()  # once, where their values can be read
        require_tokens("condition", condition, classes + 1, "class labels")
        if tuple(condition.shape) != (batch,):
            raise ValueError(
                f"condition: expected a class label for each of {batch} samples, got shape "
                f"{tuple(condition.shape)}"
            )

    def forward(
        self, x_t: Float[Tensor, "batch ..."], t: Float[Tensor, " batch"], condition: Any = None
    ) -> Tensor:
        """The model's output.

        Args:
            x_t: the state.
            t: in [0, 1].
            condition: what the model takes for its condition, or a dict of its arguments. None is
                the null condition, of a model of class labels that has one.
        """
        if condition is None and self._condition == "class_labels":
            condition = self._no_class(x_t)
        arguments = {self._state: x_t, "timestep": self.timestep(t), "return_dict": False}
        if isinstance(condition, Mapping):
            arguments.update(condition)
        elif condition is not None:
            if self._condition is None:
                raise ValueError(
                    "condition: expected None or a dict of arguments, since "
                    f"{type(self.model).__name__} has no class_labels nor encoder_hidden_states"
                )
            arguments[self._condition] = condition
        return self.model(**arguments)[0]

    def _no_class(self, x_t: Tensor) -> Tensor | None:
        if self.null_condition is None:
            return None
        return torch.as_tensor(self.null_condition, device=x_t.device).expand(x_t.shape[0])


class WrappedDiffusers(NamedTuple):
    """A model and a process for `sample`."""

    model: DiffusersDenoiser
    process: Gaussian


def wrap_diffusers(
    model: nn.Module, scheduler: Any, *, null_condition: Any = None
) -> WrappedDiffusers:
    """A model of diffusers for our sampler, and the process that its scheduler stands for.

    Example:
        >>> pipe = diffusers.DiTPipeline.from_pretrained(path)
        >>> model, process = wrap_diffusers(pipe.transformer, pipe.scheduler)
        >>> latents = sample(model, process, (2, 4, 32, 32), steps=50, condition=labels)

    Args:
        model: a transformer or UNet of diffusers.
        scheduler: that it was trained with; its configuration is read.
        null_condition: see `DiffusersDenoiser`.

    Returns:
        Both; the model shares the parameters of the one given.

    Raises:
        TypeError, ValueError: a model or a scheduler of another form.
    """
    flow = is_flow_matching(scheduler)
    denoiser = DiffusersDenoiser(
        model,
        steps=int(configuration(scheduler)["num_train_timesteps"]),
        offset=0 if flow else 1,
        null_condition=null_condition,
    )
    return WrappedDiffusers(
        denoiser, Gaussian(schedule_of(scheduler), parametrisation_of(scheduler))
    )
