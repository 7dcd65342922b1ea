"""Classifier-free guidance: away from what the model says without the condition.

    x̂₀ = (1 + w)·x̂₀(condition) − w·x̂₀(none)

on all channels. (The original DiT code guides the first three only, which is a bug for latents of
four: facebookresearch/DiT#41.) Both come from one batch of twice the size.

Source: Ho and Salimans, arXiv 2207.12598; Su, kexue.fm/archives/9257. Other codes count s = 1 + w.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Num
from torch import Tensor

from ropewalk.blocks.checks import require_number
from ropewalk.blocks.diffusion.checks import Time
from ropewalk.blocks.diffusion.guidance.guidance import Guidance, Predict, away_from
from ropewalk.blocks.diffusion.predict import Prediction
from ropewalk.blocks.diffusion.process import Process


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """(1 + scale)·conditional − scale·unconditional.

    Attributes:
        scale: w ≥ −1; 0 is the conditional model alone, −1 the unconditional one.
        null: what stands for "no condition": a number or a tensor for one sample or for all, or
            dicts and tuples of them like the condition. None takes the model's `null_condition`.

    Raises:
        TypeError: the scale is not a number.
        ValueError: the scale is below −1 or not finite.
    """

    scale: float = 1.0
    null: Any = None

    def __post_init__(self) -> None:
        require_number("ClassifierFree", "a number ≥ -1", scale=self.scale)
        if not -1 <= self.scale < float("inf"):
            raise ValueError(
                f"ClassifierFree.scale: expected a finite number ≥ -1, got {self.scale!r}"
            )

    def check(self, predict: Predict, condition: Any, process: Process) -> None:
        """Raises where there is nothing to guide by.

        Raises:
            ValueError: no condition, no null condition, or one of another shape or that the model
                does not take.
            TypeError: a condition that is no tensor, nor dicts and tuples of tensors.
        """
        joined = _joined(condition, self._null(predict, condition), "condition", None)
        if self.null is not None:
            self._check_null(predict, joined)

    def __call__(
        self,
        predict: Predict,
        x_t: Num[Tensor, "batch ..."],
        t: Time,
        condition: Any,
        process: Process,
    ) -> Prediction:
        """One call of the model at twice the batch."""
        joined = _joined(condition, self._null(predict, condition), "condition", len(x_t))
        if self.scale == 0:
            return predict(x_t, t, condition)
        times = torch.cat((t, t)) if isinstance(t, Tensor) and t.ndim == 1 else t
        both = predict(torch.cat((x_t, x_t)), times, joined)
        conditional, unconditional = both.data.chunk(2)
        variance = None if both.variance is None else both.variance.chunk(2)[0]
        return Prediction(away_from(conditional, unconditional, self.scale, process), variance)

    def _check_null(self, predict: Predict, joined: Any) -> None:
        """Asks the model; its own null condition it takes."""
        check, first = getattr(predict, "check_condition", None), _first_tensor(joined)
        if check is None or first is None:
            return
        try:
            check(joined, len(first))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"ClassifierFree.null: expected what the model takes for a condition: {error}"
            ) from error

    def _null(self, predict: Predict, condition: Any) -> Any:
        null = getattr(predict, "null_condition", None) if self.null is None else self.null
        if condition is None and null is None:
            raise ValueError(
                "ClassifierFree: expected a condition to guide by and a model with a "
                "null_condition, got neither; it is for models that were trained with a condition: "
                "give sample(…, condition=…), and ClassifierFree(null=…) what the model was "
                "trained with in place of one"
            )
        if condition is None:
            raise ValueError(
                "ClassifierFree: expected a condition to guide by, got None; give sample(…, "
                "condition=…)"
            )
        if null is None:
            raise ValueError(
                "ClassifierFree: expected a null condition, but the model has no null_condition; "
                "give ClassifierFree(null=…) what the model was trained with in place of a "
                "condition"
            )
        return null


def _joined(condition: Any, null: Any, name: str, batch: int | None) -> Any:
    """The condition, and behind it as much of the null condition; a batch of None is not known."""
    if isinstance(condition, Tensor):
        if batch is not None and condition.ndim > 0 and len(condition) != batch:
            raise ValueError(
                f"{name}: expected one entry for each of {batch} samples, got shape "
                f"{tuple(condition.shape)}"
            )
        return torch.cat((condition, _null_like(condition, null, name)))
    if isinstance(condition, dict) and isinstance(null, dict) and condition.keys() == null.keys():
        return {
            key: _joined(condition[key], null[key], f"{name}[{key!r}]", batch) for key in condition
        }
    if (
        isinstance(condition, tuple | list)
        and isinstance(null, tuple | list)
        and len(condition) == len(null)
    ):
        pairs = enumerate(zip(condition, null, strict=True))
        return tuple(
            _joined(one, other, f"{name}[{index}]", batch) for index, (one, other) in pairs
        )
    raise TypeError(
        f"{name}: expected a tensor (batch, …), or dicts and tuples of them with a null condition "
        f"of the same structure, got {type(condition).__name__} and {type(null).__name__}"
    )


def _first_tensor(condition: Any) -> Tensor | None:
    """One of the tensors of a condition; None if it is made of none."""
    while isinstance(condition, dict | tuple):
        condition = next(
            iter(condition.values() if isinstance(condition, dict) else condition), None
        )
    return condition


def _null_like(condition: Tensor, null: Any, name: str) -> Tensor:
    """The null condition in the condition's shape, dtype and device."""
    if condition.ndim == 0:
        raise ValueError(f"{name}: expected one entry per sample, (batch, …), got a 0-d tensor")
    if not isinstance(null, Tensor | int | float):
        raise TypeError(
            f"{name}: expected a number or a tensor as its null condition, got "
            f"{type(null).__name__}"
        )
    null = torch.as_tensor(null, device=condition.device).to(condition.dtype)
    if null.shape not in (torch.Size(()), condition.shape[1:], condition.shape):
        raise ValueError(
            f"{name}: expected a null condition for one sample, {tuple(condition.shape[1:])}, or "
            f"for all, {tuple(condition.shape)}, got {tuple(null.shape)}"
        )
    return null.expand(condition.shape)
