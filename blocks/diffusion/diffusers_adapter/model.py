"""A model of diffusers for our sampler, and the process that its scheduler stands for.

Its weights stay where they are; `ropewalk.blocks.denoiser.from_diffusers` copies those of its DiT
into the library's own model.
"""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ropewalk.blocks.diffusion.checks import require_tokens
from ropewalk.blocks.diffusion.diffusers_adapter.configuration import (
    configuration,
    is_flow_matching,
    parametrisation_of,
    schedule_of,
)
from ropewalk.blocks.diffusion.process import Gaussian


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
