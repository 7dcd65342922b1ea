"""The second moment of each layer's inputs, C = E[x xᵀ], gathered while a model runs.

Nothing but C and the number of rows is kept of the inputs: in² float32 numbers for a layer (0.8 GB
for 14336 inputs), so that large models are converted in parts, by what `match` says. The products
are in float32 (float64 of float64) whatever the model computes in.

The model runs in evaluation mode without gradients; modes, hooks and the random state are as before
afterwards, also when it fails.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ropewalk.blocks.monarch.conversion.masks import PaddingMasks
from ropewalk.blocks.monarch.conversion.progress import shown
from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.dtypes import statistics_dtype

Batch = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Calibration = Iterable[Batch] | Callable[[nn.Module], object]


@dataclass
class Moment:
    """The sum of x xᵀ over the rows of one layer's inputs.

    Attributes:
        total: (in, in); None before the first row.
        rows: how many there were.
    """

    total: Tensor | None = None
    rows: int = 0

    def add(self, rows: Tensor) -> None:
        """Counts rows (n, in)."""
        with suspended(rows):
            wide = rows.to(statistics_dtype(rows.dtype))
            if self.total is None:
                self.total = wide.new_zeros(wide.shape[1], wide.shape[1])
            self.total.addmm_(wide.mT, wide)
        self.rows += len(rows)

    def mean(self) -> Tensor:
        """C, (in, in)."""
        assert self.total is not None  # asked for only after rows
        return self.total / self.rows


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
        ValueError: there is no batch.
        TypeError: a batch that is none. What the model raises comes through.
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
                    masks = PaddingMasks(named, two_lengths=two_lengths)
                    _run(model, batch)
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


def _run(model: nn.Module, batch: Batch) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    elif isinstance(batch, Tensor):
        model(batch)
    else:
        raise TypeError(
            "calibration: expected batches that are a tensor, a tuple or a dict of arguments, got "
            f"{type(batch).__name__}"
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
