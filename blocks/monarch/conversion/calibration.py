"""The second moment of each layer's inputs, C = E[x xᵀ], gathered while a model runs.

Nothing but C is kept of the inputs, once for either half of the rows (see `moments`): 2·in² float32
numbers for a layer (1.6 GB for 14336 inputs), so that large models are converted in parts, by what
`match` says. The products are in float32 (float64 of float64) whatever the model computes in.

The model runs in evaluation mode without gradients; modes, hooks and the random state are as before
afterwards, also when it fails.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.monarch.conversion.masks import MASK, PaddingMasks
from ropewalk.blocks.monarch.conversion.moments import Moment
from ropewalk.blocks.monarch.conversion.progress import shown

Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Calibration = Iterable[Batch] | Callable[[nn.Module], object]


def check_calibration(calibration: object) -> None:
    """Batches, or a function.

    Raises:
        TypeError: it is neither.
    """
    single = isinstance(calibration, Tensor | Mapping | str | bytes | nn.Module)
    if single or not (callable(calibration) or isinstance(calibration, Iterable)):
        hint = (
            "; put the one batch into a list" if isinstance(calibration, Tensor | Mapping) else ""
        )
        raise TypeError(
            "calibration: expected an iterable of batches (a tensor, a tuple or a dict of "
            f"arguments each), or a function of the model, got {type(calibration).__name__}{hint}"
        )


def gather(
    model: nn.Module, layers: Iterable[nn.Module], calibration: Calibration, *, progress: bool
) -> dict[nn.Module, Moment]:
    """Runs the model and returns the moment of each layer's inputs.

    Raises:
        ValueError: there is no batch, or one with a name that nearly is a mask's.
        TypeError: a batch that is none.
        RuntimeError: the model failed on a batch; a ValueError or a TypeError if that is what it
            raised. What a function of the model raises comes through.
    """
    moments = {layer: Moment() for layer in layers}
    masks = PaddingMasks({}, two_lengths=False)

    def observe(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        moments[layer].add(masks.rows(x.detach()))

    config: Any = getattr(model, "config", None)
    two_lengths = bool(getattr(config, "is_encoder_decoder", False))
    with _as_before(model), torch.no_grad():
        # Inside: removing them is what must happen first.
        handles = [layer.register_forward_pre_hook(observe, with_kwargs=True) for layer in moments]
        try:
            if callable(calibration):
                calibration(model)
            else:
                count = 0
                for batch in shown(calibration, "calibrating", progress=progress):
                    named = batch if isinstance(batch, Mapping) else {}
                    _check_names(model, named, count)
                    masks = PaddingMasks(named, two_lengths=two_lengths)
                    _run(model, batch, count)
                    count += 1
                if not count:
                    raise ValueError(
                        "calibration: expected at least one batch, got none; an iterator that was "
                        "read before is empty"
                    )
        finally:
            for handle in handles:
                handle.remove()
    return moments


def _run(model: nn.Module, batch: Batch, index: int) -> None:
    if not isinstance(batch, Mapping | tuple | list | Tensor):
        raise TypeError(
            f"calibration: batch {index}: expected batches that are a tensor, a tuple or a dict of "
            f"arguments, got {type(batch).__name__}"
        )
    try:
        if isinstance(batch, Mapping):
            model(**batch)
        elif isinstance(batch, Tensor):
            model(batch)
        else:
            model(*batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        kinds = (ValueError, TypeError)
        kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
        what = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise kind(
            f"calibration: batch {index}: {type(model).__name__} failed on it ({what}): {error}"
        ) from error


def _check_names(model: nn.Module, batch: Mapping[str, Any], index: int) -> None:
    """Refuses a misspelt mask that a model would take and not read, so that padding counts.

    Other names that only **kwargs take are the model's own affair.
    """
    try:
        taken = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # a compiled forward may not say
        return
    for name in batch:
        if not isinstance(name, str) or name in taken or name == MASK:
            continue
        if difflib.SequenceMatcher(None, name.lower(), MASK).ratio() > 0.9:
            raise ValueError(
                f"calibration: batch {index}: expected names that {type(model).__name__} takes, "
                f"got {name!r}, which it has no parameter for; is {MASK!r} meant?"
            )


@contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module's own mode and the random state come back."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = model.parameters()
    devices = sorted({x.device.index for x in parameters if x.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode
