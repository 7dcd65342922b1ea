"""`denoising_loss`: corrupt the data at a random time, and ask the model what was done.

    L = w(t) · process.loss(model(x_t, t, condition), …)      x_t = F_t(x₀, ε), t and ε at random

It is one loss for every process: a squared error for Gaussian and Poisson flow, an absolute one for
cold diffusion, a cross-entropy for tokens. Which times are drawn (`times`) and how much each counts
(`weighting`) are separate choices; their product is what the model is trained by.
"""

from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor

from ropewalk.blocks.checks import require_number
from ropewalk.blocks.diffusion.checks import described, wide
from ropewalk.blocks.diffusion.predict import Model, Predictor
from ropewalk.blocks.diffusion.process import Affine, Process
from ropewalk.blocks.diffusion.train.learned_variance import LearnedVariance
from ropewalk.blocks.diffusion.train.times import Times, Uniform, require_times
from ropewalk.blocks.diffusion.train.weighting import Weighting, loss_weights

UNIFORM = Uniform()


def denoising_loss(
    model: Model,
    process: Process,
    x0: Num[Tensor, "batch ..."],
    condition: Any = None,
    *,
    times: Times = UNIFORM,
    weighting: Weighting | None = None,
    condition_dropout: float = 0.0,
    learned_variance: LearnedVariance | None = None,
    noise: Any = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    """The loss of every sample, to be averaged and differentiated.

    Example:
        >>> process = Gaussian(RectifiedFlow(), "flow")
        >>> loss = denoising_loss(model, process, images, labels, times=LogitNormal()).mean()

    As in `sample`, the model is given its own dtype, whatever the data's.

    Args:
        model: `model(x_t, t, condition)`; of twice the channels if it learns its variance.
        process: how data is corrupted, and what the model's output means.
        x0: the data; tokens for discrete processes. Schedules take continuous data to be of about
            unit size: scale pictures of 0 … 255 to [−1, 1].
        condition: handed to the model; a tensor (batch, …) if it is to be dropped at times.
        times: which times are drawn: `Uniform`, `LogitNormal`, `LogSNRNormal`, `Knots` or a
            function of the same form.
        weighting: None for the process's own loss; "epsilon", "v", "flow", … for the squared error
            in that parametrisation, `MinSNR(γ)`, or a function of (process, t).
        condition_dropout: the share of samples that get the model's `null_condition` instead of
            their own, for classifier-free guidance.
        learned_variance: the bound that trains the variance of a model that learns it; in bits per
            element, see there. Such a model's loss is refused without it.
        noise: what each sample is corrupted with, as `process.fresh` gives it; None draws it. The
            pairs of `reflow_pairs` have theirs.
        generator: of times, noise and dropout; on x0's device.

    Returns:
        (batch,), float32, or float64 for float64 data. The mean over each sample's elements.

    Raises:
        ValueError: before the model runs: a dropout outside [0, 1] or without a condition or a null
            condition, a condition of another batch, a weighting or a learned variance that the
            process does not define. After it: a model that does or does not give a variance.
        TypeError: data that the process is not for, a condition that cannot be dropped, or times,
            a weighting or a model that cannot be called.
    """
    predictor = Predictor(model, process)
    if not isinstance(x0, Tensor) or x0.ndim == 0:
        raise TypeError(f"x0: expected a tensor (batch, …), got {described(x0)}")
    require_times(times)
    if learned_variance is not None and process.kind != "gaussian":
        raise ValueError(
            f"learned_variance: expected None for the process {type(process).__name__}, whose "
            "steps have no Gaussian posterior"
        )
    noise = process.fresh(x0, generator=generator) if noise is None else noise
    t = times(x0.shape[0], process.schedule, generator=generator, device=x0.device)
    if t.shape != x0.shape[:1]:
        raise ValueError(f"times: expected {x0.shape[0]} times, got shape {tuple(t.shape)}")
    weights = None if weighting is None else loss_weights(weighting, process, t)
    t = t.to(wide(x0) if x0.is_floating_point() else torch.float32)
    condition = _some_dropped(condition, condition_dropout, predictor, x0, generator)

    x_t = process.corrupt(x0, noise, t)
    output, raw_variance = predictor.output(x_t, t, condition)
    _check_variance(raw_variance, learned_variance)
    loss = process.loss(output, x0, x_t, noise, t)
    if weights is not None:
        loss = loss * weights.to(loss)
    if learned_variance is not None and raw_variance is not None and isinstance(process, Affine):
        predicted = process.predict(output.detach(), x_t, t)
        bound = learned_variance.bound(raw_variance, predicted, x0, process.schedule, t)
        loss = loss + learned_variance.weight * bound
    return loss


def _some_dropped(
    condition: Any,
    share: float,
    predictor: Predictor,
    x0: Tensor,
    generator: torch.Generator | None,
) -> Any:
    """The condition with the null condition in the place of a share of its rows."""
    require_number("denoising_loss", "a number in [0, 1]", condition_dropout=share)
    if not 0 <= share <= 1:
        raise ValueError(f"condition_dropout: expected a number in [0, 1], got {share!r}")
    if isinstance(condition, Tensor) and condition.shape[:1] != x0.shape[:1]:
        raise ValueError(
            f"condition: expected one for each of {x0.shape[0]} samples, "
            f"got shape {tuple(condition.shape)}"
        )
    if share == 0:
        return condition
    null = predictor.null_condition
    if condition is None or null is None:
        what = "condition" if condition is None else "`model.null_condition`"
        raise ValueError(
            f"condition_dropout={share}: there is no {what} to drop or to put in its place"
        )
    if not isinstance(condition, Tensor):
        raise TypeError(
            f"condition_dropout={share}: expected a condition that is a tensor (batch, …), got "
            f"{type(condition).__name__}; drop such conditions before the call"
        )
    dropped = torch.rand(x0.shape[0], generator=generator, device=x0.device) < share
    dropped = dropped.to(condition.device).reshape(-1, *[1] * (condition.ndim - 1))
    null = torch.as_tensor(null, dtype=condition.dtype, device=condition.device)
    return torch.where(dropped, null, condition)


def _check_variance(raw: Tensor | None, learned: LearnedVariance | None) -> None:
    if raw is not None and learned is None:
        raise ValueError(
            "model: gives twice the channels, a learned variance, and nothing would train it; "
            "pass learned_variance=LearnedVariance()"
        )
    if raw is None and learned is not None:
        raise ValueError("learned_variance: the model gives no variance (twice x0's channels)")
