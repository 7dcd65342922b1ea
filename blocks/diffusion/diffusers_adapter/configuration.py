"""What a scheduler of diffusers says of itself: its schedule, its times and what it asks for.

Times: step k of T of a table of betas is our t = (k + 1)/T; of flow matching it is t = k/T. What
they call "flow_prediction" and the output of flow-matching models is our "flow", ε − x₀.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ropewalk.blocks.diffusion.parametrisation import PARAMETRISATIONS, Parametrisation
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
