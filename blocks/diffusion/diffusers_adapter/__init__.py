"""diffusers' schedulers for our denoisers, and its models for our sampler. Nothing is imported.

configuration.py  reading a scheduler's configuration: its schedule, times and parametrisation
scheduler.py      sample_with_scheduler: any scheduler of diffusers drives a denoiser of ours
model.py          wrap_diffusers: a model of diffusers and its scheduler's configuration, as a model
                  and a process for `sample`
"""

from ropewalk.blocks.diffusion.diffusers_adapter.configuration import (
    PREDICTION_TYPES,
    configuration,
    is_flow_matching,
    noise_levels,
    parametrisation_of,
    schedule_of,
)
from ropewalk.blocks.diffusion.diffusers_adapter.model import (
    DiffusersDenoiser,
    WrappedDiffusers,
    wrap_diffusers,
)
from ropewalk.blocks.diffusion.diffusers_adapter.scheduler import sample_with_scheduler

__all__ = [
    "PREDICTION_TYPES",
    "DiffusersDenoiser",
    "WrappedDiffusers",
    "configuration",
    "is_flow_matching",
    "noise_levels",
    "parametrisation_of",
    "sample_with_scheduler",
    "schedule_of",
    "wrap_diffusers",
]
