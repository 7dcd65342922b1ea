"""How a model is called while it is sampled: not training, under its guidance."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn

from ropewalk.blocks.diffusion.predict import Prediction, Predictor


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
