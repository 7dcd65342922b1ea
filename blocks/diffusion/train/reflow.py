"""Reflow: pairs of noise and data that a trained flow connects, to train a straighter one with.

A flow that is trained on the pairs (ε, x₀(ε)) instead of on independent ones has the same marginals
and paths that cross less, so that it needs fewer steps. Train with

    denoising_loss(model, process, pairs.data, noise=pairs.noise)

Source: Liu, Gong and Liu, arXiv 2209.03003, §2.1 and §3.2; Su, kexue.fm/archives/9497.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.diffusion.predict import Model, weight_of
from ropewalk.blocks.diffusion.process import Affine, Process
from ropewalk.blocks.diffusion.sampler import sample
from ropewalk.blocks.diffusion.sampler.checks import check_generator, check_shape
from ropewalk.blocks.diffusion.solvers import Solver, named


class ReflowPairs(NamedTuple):
    """What the flow connects.

    Attributes:
        data: x₀, where each path ended.
        noise: ε, where it began.
    """

    data: Float[Tensor, "batch ..."]
    noise: Float[Tensor, "batch ..."]


def reflow_pairs(
    model: Model,
    process: Process,
    shape: Sequence[int],
    *,
    steps: int,
    solver: str | Solver = "heun",
    guidance: Any = None,
    condition: Any = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> ReflowPairs:
    """Draws noise and follows the flow from it, without any stochasticity.

    Args:
        model: `model(x_t, t, condition)`, trained.
        process: Gaussian or Poisson flow.
        shape: (batch, …) of the data.
        steps: of the solver.
        solver: one that follows the probability flow.
        guidance: as for `sample`; what is guided is learned by the next flow.
        condition: as for `sample`.
        generator: of the noise.
        dtype: of the pairs; None takes the model's, but float32 at least.
        device: of the pairs; None takes the model's, or the generator's.

    Returns:
        The pairs.

    Raises:
        ValueError: a process or a solver without a flow, and what `sample` refuses.
    """
    chosen = named(solver)
    if not isinstance(process, Affine):
        raise ValueError(
            f"reflow_pairs: expected a process with a probability flow, Gaussian or PoissonFlow, "
            f"got {process.kind!r}"
        )
    if chosen.name in ("ancestral", "renoise"):
        raise ValueError(
            f"reflow_pairs: expected a solver that follows the flow, such as 'heun' or 'euler', "
            f"got {chosen.name!r}"
        )
    require_integer("reflow_pairs", 1, steps=steps)
    check_shape(shape, None)
    weight = weight_of(model)
    if weight is not None:
        device = weight.device if device is None else device
        dtype = dtype or torch.promote_types(weight.dtype, torch.float32)
    elif device is None and generator is not None:
        device = generator.device
    like = torch.empty(*shape, dtype=dtype or torch.float32, device=device)
    check_generator(generator, like.device)
    noise = process.fresh(like, generator=generator)
    data = sample(
        model,
        process,
        shape,
        steps=steps,
        solver=chosen,
        stochasticity=None if chosen.stochasticity is None else 0.0,
        guidance=guidance,
        condition=condition,
        start=process.corrupt(torch.zeros_like(noise), noise, 1.0),
    )
    return ReflowPairs(data, noise)
