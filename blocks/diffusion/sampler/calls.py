"""How a model is called while it is sampled: in its own dtype, not training, under its guidance."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.diffusion.checks import Time
from ropewalk.blocks.diffusion.predict import Model, Prediction, Predictor, require_model
from ropewalk.blocks.diffusion.process import Process


def weight_of(model: object) -> Tensor | None:
    """A floating-point parameter of the model; None if it has none to show."""
    if not isinstance(model, nn.Module):
        return None
    return next((p for p in model.parameters() if p.is_floating_point()), None)


class InOwnDtype:
    """A model that is given its own dtype, whatever the state's; times keep float32 at least.

    Attributes:
        model: what is called.
        null_condition: the model's, None if it has none.
        check_condition: the model's, None if it has none.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.null_condition = getattr(model, "null_condition", None)
        self.check_condition = getattr(model, "check_condition", None)
        weight = weight_of(model)
        self._dtype = None if weight is None else weight.dtype

    def __call__(self, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        if self._dtype is not None and x_t.is_floating_point():
            x_t = x_t.to(self._dtype)
            t = t.to(torch.promote_types(self._dtype, torch.float32))
        return self.model(x_t, t, condition)


class SamplingPredictor(Predictor):
    """A `Predictor` whose models, also those that a guidance brings, run in their own dtype."""

    def __init__(self, model: Model, process: Process) -> None:
        require_model(model)  # before it is wrapped, which would hide how it is called
        super().__init__(InOwnDtype(model), process)

    def output(
        self, x_t: Tensor, t: Time, condition: Any = None, model: Model | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See `Predictor.output`."""
        return super().output(x_t, t, condition, None if model is None else InOwnDtype(model))


def guided(
    predictor: Predictor, guidance: Any, condition: Any
) -> Callable[[Tensor, Tensor], Prediction]:
    """The function from state and time to the prediction that a solver follows."""
    if guidance is None:
        return lambda x, t: predictor(x, t, condition)
    return lambda x, t: guidance(predictor, x, t, condition, predictor.process)


@contextmanager
def not_training(*owners: Any) -> Iterator[None]:
    """All modules in evaluation mode within it; after it each one in the mode that it was in.

    Args:
        owners: modules, or objects that hold modules in their fields, as guidances do.
    """
    modules = [each for owner in owners for found in _modules(owner) for each in found.modules()]
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _modules(owner: Any) -> list[nn.Module]:
    if isinstance(owner, nn.Module):
        return [owner]
    if is_dataclass(owner) and not isinstance(owner, type):
        return [found for field in fields(owner) for found in _modules(getattr(owner, field.name))]
    return []
